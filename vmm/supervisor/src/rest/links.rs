//! What a client can ask next: links of the description, from what makes something to what is done with it. Clients that explore the API, and the tests of it
//! that do, know from them which ids are real.

use serde_json::{Value, json};

/// Links from an answer: its operation and status; the parameter of the others that is in it, and where; and those others.
const LINKS: [(&str, &str, &str, &str, &[&str]); 5] = [
    (
        "create_guests",
        "201",
        "id",
        "$response.body#/first",
        &[
            "inspect_guest",
            "remove_guest",
            "start",
            "stop",
            "kill",
            "pause",
            "resume",
            "log",
            "stats",
            "wait",
        ],
    ),
    ("add_image", "201", "reference", "$response.body#/digest", &["inspect_image", "remove_image"]),
    ("name_image", "200", "reference", "$request.path.reference", &["inspect_image", "remove_image"]),
    ("set_owner", "200", "name", "$response.body#/name", &["owner", "remove_owner"]),
    ("make_network", "200", "name", "$response.body#/name", &["network", "remove_network"]),
];

/// Adds them. (To the JSON: what utoipa makes of its own type for links has names that OpenAPI does not know.)
pub(super) fn add(description: &mut Value) {
    for (from, status, parameter, place, others) in LINKS {
        let Some(response) = response(description, from, status) else { continue };
        let link = |other: &&str| {
            let link = json!({"operationId": other, "parameters": {parameter: place}});
            ((*other).to_owned(), link)
        };
        response.insert("links".to_owned(), Value::Object(others.iter().map(link).collect()));
    }
}

fn response<'a>(
    description: &'a mut Value,
    operation: &str,
    status: &str,
) -> Option<&'a mut serde_json::Map<String, Value>> {
    let is_it = |of: &&mut Value| of.get("operationId").is_some_and(|id| id == operation);
    let found = operations(description).find(is_it)?;
    found.get_mut("responses")?.get_mut(status)?.as_object_mut()
}

fn operations(description: &mut Value) -> impl Iterator<Item = &mut Value> {
    let paths = description.get_mut("paths").and_then(Value::as_object_mut);
    let paths = paths.into_iter().flat_map(|paths| paths.values_mut());
    paths.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn operations_have_names_of_their_own_and_links_lead_to_some() {
        let mut description = super::super::description();
        let mut ids = BTreeSet::new();
        for operation in operations(&mut description) {
            let id = operation["operationId"].as_str().expect("an id").to_owned();
            assert!(ids.insert(id.clone()), "{id} is there twice");
        }
        for (from, status, parameter, _, others) in LINKS {
            let there = response(&mut description, from, status).expect(from)["links"].clone();
            assert_eq!(there.as_object().expect("links").len(), others.len(), "{from}");
            for other in others {
                assert!(ids.contains(*other), "{from}: {other}");
                assert!(there[other]["parameters"][parameter].is_string(), "{from}: {other}");
            }
        }
    }
}
