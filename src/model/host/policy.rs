//! What of a machine itself a subnet reaches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Proto;

/// Ranges one list may have after those that touch were joined.
const MAX_RANGES: usize = 64;

/// A range of ports of one transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The transport protocol; a range is open for one.
    pub proto: Proto,
    /// The first port, at least 1.
    pub first: u16,
    /// The last port, not before the first.
    pub last: u16,
}

/// What of a machine itself a subnet reaches beside ping and names: written `closed`, `open`, or a list as
/// `tcp/22,udp/53,tcp/8000-8010`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostPolicy {
    /// The subnet reaches ping and names, and nothing more.
    #[default]
    Closed,
    /// The subnet reaches every port of the machine.
    Open,
    /// These ports: sorted, at least one, none twice, none that touch.
    Ports(Vec<Ports>),
}

/// Why a text is no [`HostPolicy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A part of the list is not of the form.
    #[error(
        "{0:?} is not tcp/PORT, tcp/PORT-PORT, udp/PORT or udp/PORT-PORT with ports from 1 to 65535"
    )]
    Part(String),
    /// The list has more ranges than the kernel's sets should hold.
    #[error("more than {MAX_RANGES} ranges of ports")]
    TooMany,
}

impl HostPolicy {
    /// Whether a connection to that port is let in.
    pub fn permits(&self, proto: Proto, port: u16) -> bool {
        match self {
            HostPolicy::Closed => false,
            HostPolicy::Open => true,
            HostPolicy::Ports(list) => list
                .iter()
                .any(|p| p.proto == proto && (p.first..=p.last).contains(&port)),
        }
    }

    /// Whether everything that `other` lets in is let in here too.
    pub fn covers(&self, other: &HostPolicy) -> bool {
        match (self, other) {
            (HostPolicy::Open, _) | (_, HostPolicy::Closed) => true,
            (_, HostPolicy::Open) => false,
            (_, HostPolicy::Ports(list)) => {
                let inside = |p: &Ports, q: &Ports| {
                    p.proto == q.proto && q.first <= p.first && p.last <= q.last
                };
                list.iter()
                    .all(|p| self.ports().iter().any(|q| inside(p, q)))
            }
        }
    }

    /// The ports that are listed; none where all or nothing is let in.
    pub fn ports(&self) -> &[Ports] {
        match self {
            HostPolicy::Closed | HostPolicy::Open => &[],
            HostPolicy::Ports(list) => list,
        }
    }

    /// The policy that lets in these ports.
    ///
    /// # Errors
    /// [`PolicyError::TooMany`].
    pub fn of(mut ports: Vec<Ports>) -> Result<HostPolicy, PolicyError> {
        ports.sort();
        let mut joined: Vec<Ports> = Vec::new();
        for next in ports {
            match joined.last_mut() {
                Some(last)
                    if last.proto == next.proto && next.first <= last.last.saturating_add(1) =>
                {
                    last.last = last.last.max(next.last);
                }
                _ => joined.push(next),
            }
        }
        match joined.len() {
            0 => Ok(HostPolicy::Closed),
            1..=MAX_RANGES => Ok(HostPolicy::Ports(joined)),
            _ => Err(PolicyError::TooMany),
        }
    }
}

impl FromStr for Ports {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Ports, PolicyError> {
        let parse = || {
            let (proto, range) = text.split_once('/')?;
            let proto = match proto.to_ascii_lowercase().as_str() {
                "tcp" => Proto::Tcp,
                "udp" => Proto::Udp,
                _ => return None,
            };
            let port = |text: &str| {
                text.parse::<u16>()
                    .ok()
                    .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (port(first)?, port(last)?);
            (1..=last)
                .contains(&first)
                .then_some(Ports { proto, first, last })
        };
        // A whole screen of text is of no help in an error.
        parse().ok_or_else(|| PolicyError::Part(text.chars().take(40).collect()))
    }
}

impl FromStr for HostPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<HostPolicy, PolicyError> {
        let text = text.trim();
        match text.to_ascii_lowercase().as_str() {
            "closed" => Ok(HostPolicy::Closed),
            "open" => Ok(HostPolicy::Open),
            _ => HostPolicy::of(
                text.split(',')
                    .map(|part| part.trim().parse())
                    .collect::<Result<_, _>>()?,
            ),
        }
    }
}

impl TryFrom<String> for HostPolicy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<HostPolicy, PolicyError> {
        text.parse()
    }
}

impl From<HostPolicy> for String {
    fn from(policy: HostPolicy) -> String {
        policy.to_string()
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.proto, self.first)?;
        if self.last == self.first {
            Ok(())
        } else {
            write!(f, "-{}", self.last)
        }
    }
}

impl fmt::Display for HostPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPolicy::Closed => f.write_str("closed"),
            HostPolicy::Open => f.write_str("open"),
            HostPolicy::Ports(list) => {
                let list: Vec<String> = list.iter().map(Ports::to_string).collect();
                f.write_str(&list.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(text: &str) -> HostPolicy {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_is_sorted_and_joined() {
        assert_eq!(
            policy("udp/53, tcp/8000-8010,tcp/22").to_string(),
            "tcp/22,tcp/8000-8010,udp/53"
        );
        assert_eq!(
            policy("tcp/1-3,TCP/2-5,tcp/6,udp/6").to_string(),
            "tcp/1-6,udp/6"
        );
        assert_eq!(policy("tcp/1-65535,tcp/65535").to_string(), "tcp/1-65535");
        assert_eq!(policy(" Open ").to_string(), "open");
        assert_eq!(policy("closed"), HostPolicy::default());
        assert!(
            policy("tcp/22").permits(Proto::Tcp, 22) && !policy("tcp/22").permits(Proto::Udp, 22)
        );
        assert!(policy("open").permits(Proto::Udp, 1) && !policy("closed").permits(Proto::Tcp, 22));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in [
            "",
            ",",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/65536",
            "tcp/9-8",
            "icmp/1",
            "tcp/+22",
            "tcp/22,",
            "22",
            "ssh",
        ] {
            assert!(
                matches!(text.parse::<HostPolicy>(), Err(PolicyError::Part(_))),
                "{text:?}"
            );
        }
        let many: Vec<String> = (0..65).map(|n| format!("tcp/{}", 2 * n + 1)).collect();
        assert_eq!(
            many.join(",").parse::<HostPolicy>(),
            Err(PolicyError::TooMany)
        );
        assert!(many[1..].join(",").parse::<HostPolicy>().is_ok());
    }

    proptest! {
        #[test]
        fn texts_are_read_back(parts in proptest::collection::vec((any::<bool>(), 1u16.., any::<u16>()), 1..20), port: u16) {
            let ports: Vec<Ports> = parts.into_iter().map(|(tcp, first, more)| Ports {
                proto: if tcp { Proto::Tcp } else { Proto::Udp },
                first,
                last: first.saturating_add(more % 9),
            }).collect();
            let joined = HostPolicy::of(ports.clone()).unwrap();
            prop_assert_eq!(&policy(&joined.to_string()), &joined);
            // The slow twin: the list as it was typed.
            for proto in [Proto::Tcp, Proto::Udp] {
                for port in [port, ports[0].first, ports[0].last] {
                    let twin = ports.iter().any(|p| p.proto == proto && (p.first..=p.last).contains(&port));
                    prop_assert_eq!(joined.permits(proto, port), twin);
                }
            }
            prop_assert!(HostPolicy::Open.covers(&joined) && joined.covers(&joined) && joined.covers(&HostPolicy::Closed));
            prop_assert!(!HostPolicy::Closed.covers(&joined) && !joined.covers(&HostPolicy::Open));
            let less = HostPolicy::of(ports[1..].to_vec()).unwrap();
            prop_assert!(joined.covers(&less));
            prop_assert_eq!(less.covers(&joined), less == joined);
            let touch = |w: &[Ports]| w[0].proto == w[1].proto && w[1].first <= w[0].last.saturating_add(1);
            prop_assert!(!joined.ports().windows(2).any(touch));
        }

        #[test]
        fn texts_never_panic(text in "(tcp|udp|/|-|,|[0-9]{0,6}| |é){0,8}") {
            let _ = text.parse::<HostPolicy>();
        }
    }
}
