//! Why the core refuses a command or a record, in the words a person will read.

mod code;
mod hint;

pub use code::{Code, UnknownCode};
pub use hint::Hint;

/// Class of a refusal; the control API gives each its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something failed that should not.
    Failed,
    /// A value that can never be right.
    Usage,
    /// Not allowed for this node's role.
    NotPermitted,
    /// No such subnet, member, lease, name, map or workload.
    NotFound,
    /// The address, prefix, port or name is taken.
    Conflict,
    /// Refused by the other side, or waiting for it.
    Refused,
}

/// A refusal: what failed, with which values, why, and what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Error {
    /// Class.
    pub kind: Kind,
    /// Which one, for programs.
    pub code: Code,
    /// One lower-case sentence.
    pub message: String,
    /// What to try next, where there is something.
    pub hint: Option<Hint>,
}

impl Error {
    /// A refusal without a hint.
    pub fn new(kind: Kind, code: Code, message: impl Into<String>) -> Error {
        Error {
            kind,
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Option<Hint>>) -> Error {
        self.hint = hint.into();
        self
    }
}

/// Result of the core.
pub type Result<T> = std::result::Result<T, Error>;
