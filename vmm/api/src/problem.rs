//! What an error says: problem details as RFC 9457 has them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem it is: `about:blank`, so that the status says it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong and what to do, in one line.
    pub detail: String,
}

impl Problem {
    /// A problem with a status.
    #[must_use]
    pub fn new(status: u16, title: &str, detail: impl Into<String>) -> Problem {
        Problem { kind: "about:blank".to_owned(), title: title.to_owned(), status, detail: detail.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}
