//! `vmm apply`: owners, networks and guests as a file says.

use std::path::Path;

use anyhow::Context;
use foraker_api::{Configuration, config::Applied};
use serde_json::{Map, Value};

use crate::args::clients::Apply;
use crate::clients::{connect, image};
use crate::lists;
use foraker_api::units;

/// Keys whose values may be sizes such as `16M`.
const SIZES: [&str; 7] = [
    "memory",
    "memory_provision",
    "bandwidth",
    "rx_bandwidth",
    "tx_bandwidth",
    "console_bandwidth",
    "tx_packets",
];

/// Makes what a file says true.
pub(crate) fn run(apply: &Apply) -> anyhow::Result<u8> {
    let name = apply.file.display();
    let text = std::fs::read_to_string(&apply.file).with_context(|| name.to_string())?;
    let mut configuration = parse(&text).with_context(|| name.to_string())?;
    let mut client = connect(&apply.socket)?;
    let folder = apply.file.parent().unwrap_or(Path::new("."));
    for (name, declared) in &mut configuration.guests {
        let wanted = &mut declared.guest.image;
        // A path is meant from where the file is.
        if wanted.contains('/') {
            let path = folder.join(&*wanted).to_string_lossy().into_owned();
            *wanted = image(&mut client, &path).with_context(|| format!("guest {name}"))?;
        }
    }
    let path = if apply.prune { "/config?prune=true" } else { "/config" };
    let applied: Applied = client.put(path, &configuration)?;
    lists::applied(&applied);
    Ok(0)
}

/// Reads TOML, or JSON as a supervisor prints it.
fn parse(text: &str) -> anyhow::Result<Configuration> {
    let mut value: Value =
        if text.trim_start().starts_with('{') { serde_json::from_str(text)? } else { toml::from_str(text)? };
    sizes(&mut value)?;
    // In a file, what a guest is and how many there are stand side by side.
    for declared in
        value.get_mut("guests").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        if let Value::Object(fields) = declared
            && !fields.contains_key("guest")
        {
            let count = fields.remove("count").unwrap_or(1.into());
            let guest = std::mem::take(fields);
            fields.extend([("count".to_owned(), count), ("guest".to_owned(), guest.into())]);
        }
    }
    Ok(serde_json::from_value(value)?)
}

/// Turns sizes and processors as people write them into numbers.
fn sizes(value: &mut Value) -> anyhow::Result<()> {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if SIZES.contains(&key.as_str()) => {
                        *value = units::size(text).map_err(anyhow::Error::msg)?.into();
                    }
                    // Environments and labels hold texts whatever they are called.
                    Value::Object(_) if key == "environment" || key == "labels" => {}
                    _ => sizes(value)?,
                }
            }
        }
        Value::Array(items) => items.iter_mut().try_for_each(sizes)?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        parse(text).map(drop).map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn a_file_says_everything() {
        let text = r#"
            [owners.shop]
            weight = 2
            most = { memory = "2G", guests = 100 }
            [networks.backend]
            owner = "shop"
            [guests.web]
            image = "images/httpd"
            owner = "shop"
            count = 3
            memory = "16M"
            restart = "always"
            environment = { memory = "lots" }
            network = { name = "backend", rx_bandwidth = "1M" }
        "#;
        let configuration = parse(text).unwrap();
        assert_eq!(configuration.owners["shop"].most.memory, Some(2 << 30));
        let web = &configuration.guests["web"];
        assert_eq!((web.count, web.guest.memory), (3, Some(16 << 20)));
        assert_eq!(web.guest.environment["memory"], "lots");
        assert_eq!(web.guest.network.rx_bandwidth, Some(1 << 20));
        // And JSON, as it is read back.
        let json = serde_json::to_string(&configuration).unwrap();
        assert_eq!(parse(&json).unwrap(), configuration);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(wrong("[guests.web]\nimage = \"x\"\nmemory = \"lots\"").contains("'lots' is not a size"));
        assert!(wrong("[guests.web]\nimage = \"x\"\ncolour = 1").contains("colour"));
        assert!(wrong("[guest.web]\nimage = \"x\"").contains("guest"));
    }
}
