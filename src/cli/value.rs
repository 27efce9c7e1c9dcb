//! Values as people type them, each checked at the edge with a message and a code of its own.
//!
//! All of these are exit code 2: nothing has been asked of the daemon yet.

mod dns;
mod network;

use std::io::Read;
use std::time::Duration;

pub use dns::{
    allowed_domain, dns_name, dns_question, domain, record_name, record_type, srv, ttl, txt,
};
pub use network::{
    Listen, address, cidr4, cidr6, lease_lines, listen, mac, map_target, multiaddr, peer, prefix,
};

use crate::api::types::{Error, ErrorKind, Role};
use crate::model::error::{Code, Hint};
use crate::model::host::HostPolicy;
use crate::model::id::{Name, SubnetId};
use crate::model::join::unwrapped;

/// A value that was checked, or why it was not taken.
pub type Checked<T> = Result<T, Error>;

/// A wrong value.
pub fn wrong(code: Code, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, code, message)
}

/// What is echoed of a wrong value: enough to see it, not enough to fill a terminal.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// What of this machine a subnet reaches: `closed`, `open`, or a list of ports.
pub fn host_policy(text: &str) -> Checked<HostPolicy> {
    let list = "closed, open, or a list as tcp/22,udp/53,tcp/8000-8010 is expected";
    text.parse()
        .map_err(|e: crate::model::host::PolicyError| wrong(Code::Host, format!("{e}; {list}")))
}

/// One DNS label.
pub fn name(text: &str) -> Checked<Name> {
    text.parse()
        .map_err(|e: crate::model::id::IdError| wrong(Code::Name, e.to_string()))
}

/// A subnet by ID, name or prefix of an ID: one label in every case.
pub fn subnet(text: &str) -> Checked<String> {
    name(text).map(|n| n.to_string())
}

/// An object of the daemon that may be named in several ways (a member, a peer, a workload, an invite).
pub fn object(text: &str) -> Checked<String> {
    let fine = (1..=4096).contains(&text.len())
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if fine {
        Ok(text.to_owned())
    } else {
        Err(wrong(Code::Name, format!("{} names nothing", shown(text))))
    }
}

/// A user of this machine, by name or by number.
pub fn user(text: &str) -> Checked<u32> {
    let wrong = |why: &str| wrong(Code::Name, format!("{} {why}", shown(text)));
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(wrong("is no user of this machine")),
        Err(error) => Err(wrong(&format!("cannot be looked up: {error}"))),
    }
}

/// A whole number from `least` to `most`; `what` is what is counted.
pub fn number(text: &str, least: u32, most: u32, what: &str) -> Checked<u32> {
    let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|n| fine && (least..=most).contains(n))
        .ok_or_else(|| {
            wrong(
                Code::Number,
                format!(
                    "{} is not {what}: a whole number from {least} to {most}",
                    shown(text)
                ),
            )
        })
}

/// How many may join by an invite.
pub fn uses(text: &str) -> Checked<u32> {
    number(text, 1, u32::MAX, "a number of uses")
}

/// Length of a member's IPv4 block.
pub fn block4(text: &str) -> Checked<u8> {
    number(text, 1, 32, "the length of a block").map(|n| u8::try_from(n).unwrap_or(32))
}

/// How many probes `ping` sends.
pub fn probes(text: &str) -> Checked<u32> {
    number(text, 1, 100_000, "a number of probes")
}

/// `500ms`, `3s`, `5m`, `24h`, `7d`.
pub fn duration(text: &str) -> Checked<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let scale = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000u64),
        _ => None,
    };
    // A century: longer is a typing error, and stays far from every overflow.
    const MOST: u64 = 36_500 * 86_400_000;
    number
        .parse::<u64>()
        .ok()
        .zip(scale)
        .and_then(|(n, scale)| n.checked_mul(scale))
        .filter(|ms| *ms > 0 && *ms <= MOST)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            wrong(
                Code::Duration,
                format!(
                    "{} is not a duration such as 500ms 3s 5m 24h 7d",
                    shown(text)
                ),
            )
        })
}

/// Milliseconds of a duration, which [`duration`] keeps below a century.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes of the longest invite.
const MAX_INVITE: usize = 8192;
/// Characters of the ID of a subnet.
const ID_LENGTH: usize = 26;
/// What every invite begins with.
const INVITE_HEAD: &str = "byway1";

/// What `join` is given: an invite, or the ID of a subnet.
pub fn join_target(text: &str) -> Checked<String> {
    let text = unwrapped(text);
    if let Ok(id) = text.parse::<SubnetId>() {
        return Ok(id.to_string());
    }
    // Whether an invite is whole, forged or used is one answer of the daemon's, with one exit code.
    if text.starts_with(INVITE_HEAD) {
        return if text.len() <= MAX_INVITE && text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Ok(text)
        } else {
            let message =
                "this is no invite: it was cut or mistyped, or something stands beside it";
            Err(
                Error::new(ErrorKind::Refused, Code::InviteMalformed, message)
                    .hint(Hint::NewInvite),
            )
        };
    }
    if text.is_empty() {
        return Err(wrong(
            Code::Id,
            "expected the ID of a subnet or an invite (byway1…): there is nothing",
        ));
    }
    if text.len() > 2 * ID_LENGTH {
        let message = format!(
            "{} characters are no ID of a subnet, which has {ID_LENGTH}, and no invite, which begins with {INVITE_HEAD}: \
             was its beginning cut off?",
            text.chars().count()
        );
        return Err(wrong(Code::Id, message));
    }
    // Not echoed whole: it may be a secret with a wrong beginning.
    let why = match text.parse::<SubnetId>() {
        Err(e) => e.to_string(),
        Ok(_) => String::new(),
    };
    Err(wrong(
        Code::Id,
        format!("expected the ID of a subnet or an invite (byway1…): {why}"),
    ))
}

/// An invite by its ID or by itself, as it was sent.
pub fn invite(text: &str) -> Checked<String> {
    let whole = unwrapped(text);
    if whole.starts_with(INVITE_HEAD) {
        object(&whole)
    } else {
        object(text)
    }
}

/// A secret from a file, or from standard input for `-`.
pub fn secret(file: &str) -> Checked<String> {
    text_of(file, MAX_INVITE as u64)
}

/// A file of at most `most` bytes, `-` for standard input.
pub fn text_of(file: &str, most: u64) -> Checked<String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin()
            .lock()
            .take(most + 1)
            .read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|f| f.take(most + 1).read_to_string(&mut text)),
    };
    match read {
        Ok(n) if n as u64 > most => Err(wrong(
            Code::File,
            format!("{file} is larger than {most} bytes"),
        )),
        // Some editors put a byte order mark first; it is no part of any text.
        Ok(_) => Ok(text
            .strip_prefix('\u{feff}')
            .map(ToOwned::to_owned)
            .unwrap_or(text)),
        Err(e) => Err(wrong(Code::File, format!("read {file}: {e}"))),
    }
}

/// `key=value`.
pub fn label(text: &str) -> Checked<(String, String)> {
    let bad = || {
        wrong(
            Code::Label,
            format!("{} is not a label such as site=berlin", shown(text)),
        )
    };
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    let fine = (1..=63).contains(&key.len()) && key.bytes().all(legal) && value.len() <= 255;
    if fine && !value.chars().any(char::is_control) {
        Ok((key.to_owned(), value.to_owned()))
    } else {
        Err(bad())
    }
}

/// A role that can be given: nobody is made owner.
pub fn role(text: &str) -> Checked<Role> {
    match text {
        "member" => Ok(Role::Member),
        "admin" => Ok(Role::Admin),
        _ => Err(wrong(
            Code::Role,
            format!(
                "{} is not a role that can be given: member, admin",
                shown(text)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn code<T: std::fmt::Debug>(result: Checked<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        error.code
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, ms) in [
            ("500ms", 500),
            ("3s", 3000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for text in [
            "",
            "5",
            "0s",
            "-3s",
            "3 s",
            "99999999999999999999d",
            "1000000d",
            "s",
            "3sec",
            "١s",
        ] {
            assert_eq!(code(duration(text)), "E-DURATION", "{text}");
        }
    }

    #[test]
    fn a_join_target_is_an_id_or_an_invite() {
        let id = SubnetId([9; 16]).to_string();
        assert_eq!(join_target(&id.to_uppercase()), Ok(id.clone()));
        assert_eq!(
            join_target(&format!(" byway1{id}\n")),
            Ok(format!("byway1{id}"))
        );
        // What is wrong with an invite is the daemon's to say.
        assert_eq!(join_target("byway1").ok().as_deref(), Some("byway1"));
        for text in ["byway1abc\x1b[2J", "byway1abc (one use)"] {
            let error = join_target(text).unwrap_err();
            assert_eq!(
                (error.kind, error.code.as_str()),
                (ErrorKind::Refused, "E-INVITE-MALFORMED"),
                "{text}"
            );
        }
        // As it comes back from a mail program, an editor, a shell's quotes.
        for text in [
            "byway1ab\n  cdef\ngh\n",
            "> byway1abcd\r\n> efgh\r\n",
            "\u{feff}byway1abcdefgh",
            "\"byway1abcd efgh\"",
            "<byway1abcd=\r\nefgh>",
        ] {
            assert_eq!(
                join_target(text).as_deref(),
                Ok("byway1abcdefgh"),
                "{text:?}"
            );
        }
        assert_eq!(
            join_target(&format!("\u{feff}{}\n{}", &id[..9], &id[9..])),
            Ok(id.clone())
        );
        assert!(
            join_target(&"x".repeat(200))
                .unwrap_err()
                .message
                .contains("was its beginning cut off?")
        );
        for text in ["", "lab", &id[..25], &format!("{}u", &id[..25])] {
            assert_eq!(code(join_target(text)), "E-ID", "{text}");
        }
    }

    #[test]
    fn numbers_are_checked_in_words() {
        for text in ["many", "0", "-1", "+1", "", "4294967296", "1.5"] {
            let error = uses(text).unwrap_err();
            assert_eq!(
                (error.kind, error.code.as_str()),
                (ErrorKind::Usage, "E-NUMBER"),
                "{text}"
            );
            assert!(
                error
                    .message
                    .ends_with("is not a number of uses: a whole number from 1 to 4294967295"),
                "{error:?}"
            );
        }
        assert_eq!(
            (uses("4294967295"), block4("24"), probes("1")),
            (Ok(u32::MAX), Ok(24), Ok(1))
        );
        assert_eq!(
            (code(block4("33")), code(block4("abc")), code(probes("0"))),
            ("E-NUMBER".into(), "E-NUMBER".into(), "E-NUMBER".into())
        );
    }

    #[test]
    fn a_label_has_a_key_and_a_value() {
        assert_eq!(label("site=x=y"), Ok(("site".to_owned(), "x=y".to_owned())));
        assert_eq!(code(label("site")), "E-LABEL");
    }

    proptest! {
        #[test]
        fn no_value_panics(text in "\\PC{0,40}|[0-9a-f:.\\[\\]/-]{0,30}|byway1\\PC{0,40}") {
            let _ = (duration(&text), prefix(&text), cidr4(&text), cidr6(&text), listen(&text), map_target(&text));
            let _ = (join_target(&text), lease_lines(&text), srv(&text), ttl(&text), mac(&text), label(&text));
            let _ = (dns_question(&text), peer(&text), object(&text), subnet(&text), role(&text), record_type(&text));
        }
    }
}
