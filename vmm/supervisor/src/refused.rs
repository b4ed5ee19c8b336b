//! Why a request is not carried out: one line for people, and a kind for programs.

use thiserror::Error;

use crate::admission::NotTaken;

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// What it is about is not there.
    #[error("{0}")]
    NotFound(String),
    /// It does not go together with what is there.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The host or the registry is at fault.
    #[error("{0}")]
    Broken(String),
}

impl From<NotTaken> for Refused {
    fn from(why: NotTaken) -> Refused {
        match why {
            NotTaken::BadName(_) => Refused::Invalid(why.to_string()),
            NotTaken::TooManyOwners
            | NotTaken::Refused { .. }
            | NotTaken::Host(_)
            | NotTaken::Settings { .. } => Refused::Conflict(why.to_string()),
        }
    }
}
