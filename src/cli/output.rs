//! Standard output that may not take what is written: a full disk, a reader that went away.
//!
//! An answer that nobody could read is a failure. A reader that went away (`| head`) has what it wanted and is none,
//! unless the answer held what is shown once only: that is withdrawn, so that nothing stays in force that nobody knows.

use std::io::{self, Write as _};

use super::{Context, blocking, print};
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::model::error::Code;

/// What became of text for standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// All of it is written.
    Whole,
    /// Nobody reads any more.
    Unread,
}

/// Writes to standard output.
pub(super) fn write(text: &str) -> Result<Written, Error> {
    let mut out = io::stdout().lock();
    judge(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn judge(written: io::Result<()>) -> Result<Written, Error> {
    match written {
        Ok(()) => Ok(Written::Whole),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Written::Unread),
        Err(e) => Err(failed(&e.to_string())),
    }
}

fn failed(why: &str) -> Error {
    Error::new(
        ErrorKind::Failed,
        Code::Output,
        format!("the answer could not be written to standard output: {why}"),
    )
}

/// What an answer shows once and no verb shows again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Once {
    /// The invite.
    invite: String,
    /// It alone on a line, for `--quiet`.
    line: String,
    /// How to get another one.
    again: String,
    /// What was done beside it and stands.
    stands: String,
}

impl Once {
    /// What of an answer is shown once; `subnet` is what a person called the subnet.
    pub(super) fn of(response: &Response, subnet: Option<&str>) -> Option<Once> {
        let line = |invite: &str| print::clean(invite) + "\n";
        match response {
            Response::Created(c) => Some(Once {
                invite: c.invite.clone()?,
                line: line(c.invite.as_deref()?),
                again: format!("byway invite create {}", c.name),
                stands: format!("subnet {} ({}) was founded and stays; ", c.name, c.id),
            }),
            Response::Invite(i) => Some(Once {
                invite: i.invite.clone(),
                line: line(&i.invite),
                again: format!("byway invite create {}", subnet.unwrap_or("SUBNET")),
                stands: String::new(),
            }),
            _ => None,
        }
    }

    /// The invite alone, with a newline.
    pub(super) fn line(&self) -> &str {
        &self.line
    }
}

/// Writes an answer. Where it could not be read and held what is shown once only, that is withdrawn.
pub(super) fn answer(text: &str, once: Option<&Once>, context: &Context) -> Result<(), Error> {
    let error = match (write(text), once) {
        (Ok(Written::Whole), _) | (Ok(Written::Unread), None) => return Ok(()),
        (Ok(Written::Unread), Some(_)) => failed("its reader went away"),
        (Err(error), _) => error,
    };
    let Some(once) = once else { return Err(error) };
    let revoke = Request::InviteRevoke {
        subnet: None,
        invite: once.invite.clone(),
    };
    let invite = match blocking(context.client.call(&revoke)) {
        Ok(_) => "its invite is withdrawn".to_owned(),
        Err(e) => format!("its invite could not be withdrawn: {}", e.message),
    };
    Err(Error {
        message: format!("{}; {}{invite}", error.message, once.stands),
        ..error
    }
    .hint(once.again.clone()))
}

/// Writes an error: on standard output as an object where programs read, and on standard error where that fails.
pub(super) fn error(style: print::Style, json: bool, error: &Error) {
    if !json || write(&print::error_json(error)).is_err() {
        print::stderr(&print::error(style, error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_went_away_is_no_failure() {
        assert_eq!(judge(Ok(())), Ok(Written::Whole));
        assert_eq!(
            judge(Err(io::ErrorKind::BrokenPipe.into())),
            Ok(Written::Unread)
        );
        for kind in [
            io::ErrorKind::StorageFull,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::WriteZero,
        ] {
            let error = judge(Err(kind.into())).unwrap_err();
            assert_eq!(
                (error.kind, error.code.as_str()),
                (ErrorKind::Failed, "E-OUTPUT")
            );
        }
    }
}
