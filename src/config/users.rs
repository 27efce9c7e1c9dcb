//! Users of this machine who may attach containers of their own, each with the number of them (`workloads.users`).

use std::fmt;
use std::str::FromStr;

/// Workloads of a user whose entry names no number.
pub const DEFAULT_QUOTA: u32 = 16;
/// The largest number of workloads that an entry may name.
pub const MAX_QUOTA: u32 = 1024;
/// Most users that are listed.
const MAX_USERS: usize = 256;
/// Bytes of the longest user name that Linux tools make.
const MAX_NAME: usize = 32;

/// One entry of the list: `alice`, `alice=64`, or `1000=64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadUser {
    /// Name of the user, or its number in digits.
    pub name: String,
    /// Workloads that the user may have at a time, 1 to [`MAX_QUOTA`].
    pub quota: u32,
}

impl FromStr for WorkloadUser {
    type Err = String;

    fn from_str(text: &str) -> Result<WorkloadUser, String> {
        let (name, quota) = match text.split_once('=') {
            None => (text, DEFAULT_QUOTA),
            Some((name, digits)) => {
                let quota = digits.parse().ok();
                let quota = quota.filter(|quota| (1..=MAX_QUOTA).contains(quota));
                let wrong =
                    || format!("{text:?}: expected a number of workloads from 1 to {MAX_QUOTA}");
                (name, quota.ok_or_else(wrong)?)
            }
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(format!(
                "{text:?}: expected the name of a user, or NAME=WORKLOADS"
            ));
        }
        if matches!(name, "root" | "0") {
            return Err(format!("{text:?}: root needs no entry and has no bound"));
        }
        Ok(WorkloadUser {
            name: name.to_owned(),
            quota,
        })
    }
}

impl fmt::Display for WorkloadUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.quota)
    }
}

/// Reads the whole list.
///
/// # Errors
/// An entry is none of a user, a user is named twice, or there are more than 256.
pub(super) fn read(list: &[String]) -> Result<Vec<WorkloadUser>, String> {
    if list.len() > MAX_USERS {
        return Err(format!("{} users: {MAX_USERS} at most", list.len()));
    }
    let mut users: Vec<WorkloadUser> = Vec::new();
    for text in list {
        let user: WorkloadUser = text.parse()?;
        if users.iter().any(|known| known.name == user.name) {
            return Err(format!("user {} is named twice", user.name));
        }
        users.push(user);
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_user_and_how_many_workloads_it_may_have() {
        let user = |text: &str| text.parse::<WorkloadUser>().map(|u| (u.name, u.quota));
        assert_eq!(user("alice"), Ok(("alice".to_owned(), DEFAULT_QUOTA)));
        assert_eq!(user("1000=1024"), Ok(("1000".to_owned(), 1024)));
        for wrong in [
            "",
            "=3",
            "a b",
            "alice=",
            "alice=0",
            "alice=1025",
            "alice=-1",
            "alice=3=4",
            "root",
            "0=3",
            "a/b",
        ] {
            assert!(user(wrong).is_err(), "{wrong:?}");
        }
        let list = |all: &[&str]| read(&all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(list(&["a", "b=2"]).unwrap().len(), 2);
        assert!(list(&["a", "a=2"]).unwrap_err().contains("twice"));
        let many: Vec<String> = (0..=MAX_USERS).map(|n| format!("u{n}")).collect();
        assert!(read(&many).is_err() && read(&many[1..]).is_ok());
    }
}
