//! What a runtime says of one call by variables of the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::failure::{ENVIRONMENT, Failure};
use crate::engine::program::is_link;

/// Bytes of the longest ID of a container that the daemon takes.
const MAX_CONTAINER: usize = 255;

/// The variables of one call, as they were found.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment(BTreeMap<String, String>);

/// The interface of a container that a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    pub container: String,
    pub ifname: String,
    /// Empty where the runtime names no namespace: for `DEL`, when it is gone.
    pub netns: PathBuf,
    /// The pairs of `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
}

impl Environment {
    /// Of `variables` those that are the protocol's. A value that is no UTF-8 counts as missing.
    pub(super) fn of(
        variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    ) -> Environment {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        let ours = |(key, _): &(String, String)| key.starts_with("CNI_");
        Environment(
            variables
                .into_iter()
                .filter_map(text)
                .filter(ours)
                .collect(),
        )
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// The command that is asked for.
    pub(super) fn command(&self) -> &str {
        self.get("CNI_COMMAND")
    }

    /// What the call is about; `with_netns` where it cannot be done without a namespace.
    ///
    /// # Errors
    /// Names every variable that is missing, or the first that is wrong.
    pub(super) fn attachment(&self, with_netns: bool) -> Result<Attachment, Failure> {
        let mut needed = vec!["CNI_CONTAINERID", "CNI_IFNAME"];
        needed.extend(with_netns.then_some("CNI_NETNS"));
        needed.retain(|key| self.get(key).is_empty());
        if !needed.is_empty() {
            let message = format!("{} is missing", needed.join(", "));
            return Err(Failure::new(ENVIRONMENT, message));
        }
        let container = self.get("CNI_CONTAINERID");
        if container.len() > MAX_CONTAINER || !is_plain(container) {
            let what = "a letter or digit, then letters, digits, '_', '.' and '-', 255 at most";
            return Err(wrong("CNI_CONTAINERID", container, what));
        }
        let ifname = self.get("CNI_IFNAME");
        if !is_link(ifname) {
            let what = "1 to 15 letters, digits, '-', '_' and '.'";
            return Err(wrong("CNI_IFNAME", ifname, what));
        }
        let netns = self.get("CNI_NETNS");
        if !netns.is_empty() && !Path::new(netns).is_absolute() {
            return Err(wrong("CNI_NETNS", netns, "an absolute path"));
        }
        Ok(Attachment {
            container: container.to_owned(),
            ifname: ifname.to_owned(),
            netns: netns.into(),
            args: pairs(self.get("CNI_ARGS"))?,
        })
    }
}

/// Digits that an ID which nobody reads has at least.
const RANDOM_ID: usize = 32;

impl Attachment {
    /// What people call the container: the pod's name, else its ID unless that is a random number, of which the daemon takes
    /// the beginning.
    pub(super) fn called(&self) -> Option<&str> {
        let pod = self.args.get("K8S_POD_NAME").map(String::as_str);
        let id = self.container.as_str();
        let random = id.len() >= RANDOM_ID && id.bytes().all(|b| b.is_ascii_hexdigit());
        pod.filter(|name| !name.is_empty())
            .or((!random).then_some(id))
    }
}

/// Whether a text begins with a letter or digit and goes on with those, `_`, `.` and `-`.
pub(super) fn is_plain(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    text.bytes().all(rest) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn wrong(key: &str, value: &str, expected: &str) -> Failure {
    let shown: String = value.chars().take(80).collect();
    Failure::new(
        ENVIRONMENT,
        format!("{key} is {shown:?}: expected {expected}"),
    )
}

/// `KEY=VALUE;KEY=VALUE`.
fn pairs(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |pair: &str| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong("CNI_ARGS", pair, "KEY=VALUE, with ';' between them"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(';')
        .filter(|p| !p.is_empty())
        .map(pair)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::of(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())))
    }

    #[test]
    fn every_variable_that_is_missing_is_named() {
        let none = environment(&[("HOME", "/root")])
            .attachment(true)
            .unwrap_err();
        assert_eq!(
            (none.code, none.message.as_str()),
            (4, "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS is missing")
        );
        let some = [("CNI_CONTAINERID", "web.1_A-b"), ("CNI_IFNAME", "eth0")];
        assert!(
            environment(&some).attachment(false).is_ok(),
            "DEL needs no namespace"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_variable() {
        let with = |key: &str, value: &str| {
            let mut all = vec![
                ("CNI_CONTAINERID", "c1"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", "/run/netns/x"),
            ];
            all.push((key, value));
            environment(&all).attachment(true)
        };
        for (key, value) in [
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_CONTAINERID", &"a".repeat(256)),
            ("CNI_IFNAME", "sixteen-bytes-00"),
            ("CNI_IFNAME", "eth 0"),
            ("CNI_NETNS", "blue"),
            ("CNI_ARGS", "IP=1;nonsense"),
        ] {
            let failure = with(key, value).unwrap_err();
            assert_eq!(failure.code, 4, "{key}={value}");
            assert!(failure.message.contains(key), "{failure:?}");
        }
        let args = with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0;")
            .unwrap()
            .args;
        assert_eq!(args.get("K8S_POD_NAME").map(String::as_str), Some("web-0"));
    }
}
