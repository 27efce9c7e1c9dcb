//! Why a peer is reached through a relay and not directly: one reason, computed from what both ends know of themselves, from
//! what was tried, and from what this machine's owner decided. It is pure: `paths` collects the facts.
//!
//! What makes a direct path impossible goes before what makes it unlikely, and before the search that is still under way: a
//! person who can mend the cause need not wait for the end of the search.

use crate::wire::paths::{Filtering, Mapping};

/// Whether datagrams leave and reach an end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Udp {
    /// Nothing says that they do not.
    #[default]
    Open,
    /// Streams reach others and no datagram ever came back.
    Blocked,
    /// The owner opened no UDP port (`transport.listen`).
    Off,
}

/// What is known of one end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub udp: Udp,
    /// Whether it has addresses of each family that lead out; both where that is not known.
    pub v4: bool,
    pub v6: bool,
    pub mapping: Mapping,
    pub filtering: Filtering,
    /// Whether a port is open there for everybody all the same: its router opened one, or its owner forwards one.
    pub is_open: bool,
}

impl End {
    /// Of which nothing is known, so that only what is likely is assumed.
    pub(crate) const UNKNOWN: End = End {
        udp: Udp::Open,
        v4: true,
        v6: true,
        mapping: Mapping::Unknown,
        filtering: Filtering::Unknown,
        is_open: false,
    };
}

/// What the reason is computed from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub here: End,
    /// None until the peer has told.
    pub there: Option<End>,
    /// Whether every address of the peer is one that this machine's owner forbids (`transport.deny_cidrs`).
    pub denied: bool,
    /// Whether a direct path was left although its probes were answered, because packets on it did not arrive.
    pub black_hole: bool,
    /// Whether the path is so new that a direct one may still be found.
    pub searching: bool,
}

/// At which end a cause lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Here,
    There,
    Both,
}

/// Why there is no direct path. The words are a contract, see [`Reason::word`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Symmetric(Side),
    UdpBlocked(Side),
    NoCommonFamily,
    Probing,
    Policy,
    PeerSilent,
    BlockedData,
    RelayOnlyByChoice(Side),
}

/// The reason, from the facts.
pub(crate) fn reason(facts: &Facts) -> Reason {
    let there = facts.there.unwrap_or(End::UNKNOWN);
    let here = facts.here;
    let at = |is: fn(&End) -> bool| match (is(&here), is(&there)) {
        (true, true) => Some(Side::Both),
        (true, false) => Some(Side::Here),
        (false, true) => Some(Side::There),
        (false, false) => None,
    };
    if let Some(side) = at(|end| end.udp == Udp::Off) {
        return Reason::RelayOnlyByChoice(side);
    }
    if facts.denied {
        return Reason::Policy;
    }
    if let Some(side) = at(|end| end.udp == Udp::Blocked) {
        return Reason::UdpBlocked(side);
    }
    if !(here.v4 && there.v4 || here.v6 && there.v6) {
        return Reason::NoCommonFamily;
    }
    if facts.black_hole {
        return Reason::BlockedData;
    }
    // Whoever keeps no port of its own still reaches one that is open for everybody.
    let is_open = here.is_open || there.is_open;
    let symmetric = at(|end| matches!(end.mapping, Mapping::Dependent { .. }));
    let symmetric = symmetric.filter(|_| !is_open);
    // Only a NAT that counts its ports can be met by the next port it will use, which is probed all the while.
    if symmetric == Some(Side::Both) {
        return Reason::Symmetric(Side::Both);
    }
    if facts.searching {
        return Reason::Probing;
    }
    match symmetric {
        Some(Side::Here) if !there.filtering.lets_in_any_port() => Reason::Symmetric(Side::Here),
        Some(Side::There) if !here.filtering.lets_in_any_port() => Reason::Symmetric(Side::There),
        _ => Reason::PeerSilent,
    }
}

impl Reason {
    /// The word for programs: `path.reason` of the API.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Reason::Symmetric(Side::Both) => "symmetric-nat-both",
            Reason::Symmetric(Side::Here) => "symmetric-nat-here",
            Reason::Symmetric(Side::There) => "symmetric-nat-there",
            Reason::UdpBlocked(_) => "udp-blocked",
            Reason::NoCommonFamily => "no-common-family",
            Reason::Probing => "probing",
            Reason::Policy => "policy",
            Reason::PeerSilent => "peer-silent",
            Reason::BlockedData => "blocked-data",
            Reason::RelayOnlyByChoice(_) => "relay-only-by-choice",
        }
    }

    /// The cause as the end of a sentence, `NAME is relayed because …`.
    pub(crate) fn cause(self, peer: &str, facts: &Facts) -> String {
        match self {
            Reason::Symmetric(Side::Both) => {
                "neither side keeps its UDP port: both NATs are symmetric".into()
            }
            Reason::Symmetric(Side::Here) => {
                "the NAT in front of this machine is symmetric: it takes another UDP port for each destination".into()
            }
            Reason::Symmetric(Side::There) => format!(
                "the NAT in front of {peer} is symmetric: it takes another UDP port for each destination"
            ),
            Reason::UdpBlocked(side) => format!("UDP is blocked {}", place(side, peer)),
            Reason::NoCommonFamily => {
                let family = |end: &End| match (end.v4, end.v6) {
                    (true, false) => "only IPv4",
                    (false, true) => "only IPv6",
                    (true, true) => "both IPv4 and IPv6",
                    (false, false) => "neither IPv4 nor IPv6",
                };
                let there = facts.there.as_ref().map_or("another family", family);
                format!("this machine has {} and {peer} has {there}", family(&facts.here))
            }
            Reason::Probing => format!("a direct path to {peer} is still looked for"),
            Reason::Policy => {
                format!("every address of {peer} is in this machine's transport.deny_cidrs")
            }
            Reason::PeerSilent => format!("{peer} answers no datagram at any of its addresses"),
            Reason::BlockedData => format!(
                "small datagrams reach {peer} directly and packets do not: something on the way drops them"
            ),
            Reason::RelayOnlyByChoice(side) => {
                format!("no UDP port is opened {}, as transport.listen says", place(side, peer))
            }
        }
    }

    /// What a person can do about it; none where waiting is all.
    pub(crate) fn remedy(self, peer: &str) -> Option<String> {
        let port = "byway's UDP port (4100 unless configured)";
        Some(match self {
            Reason::Probing => return None,
            Reason::Symmetric(Side::Both) => format!("open or forward {port} on one side"),
            Reason::Symmetric(_) => format!(
                "open or forward {port} here or at {peer}, or turn symmetric NAT off in that router"
            ),
            Reason::UdpBlocked(side) => {
                format!(
                    "{}, let {port} out, and the answers back in",
                    place(side, peer)
                )
            }
            Reason::NoCommonFamily => "give one of the two an address of the other's family".into(),
            Reason::Policy => format!(
                "take one address of {peer} out of transport.deny_cidrs here, then byway reload"
            ),
            Reason::PeerSilent => {
                format!(
                    "let {port} through the firewall at {peer} or here, or forward it in a router"
                )
            }
            Reason::BlockedData => format!(
                "look for a firewall between this machine and {peer} that drops large or long UDP flows, and let {port} through"
            ),
            Reason::RelayOnlyByChoice(side) => {
                format!("add udp/4100 to transport.listen {}", place(side, peer))
            }
        })
    }

    /// Whether a person can mend it and would want to know: not what is still tried, and not what the owner chose.
    pub(crate) fn is_a_problem(self) -> bool {
        !matches!(self, Reason::Probing | Reason::RelayOnlyByChoice(_))
    }
}

fn place(side: Side, peer: &str) -> String {
    match side {
        Side::Here => "here".into(),
        Side::There => format!("at {peer}"),
        Side::Both => format!("here and at {peer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An end behind each kind of NAT of the grid, as both peers learn it.
    fn end(kind: &str) -> End {
        use Filtering::{AddressAndPortDependent, AddressDependent, Independent};
        let nat = |mapping, filtering| End {
            udp: Udp::Open,
            v4: true,
            v6: kind == "none",
            mapping,
            filtering,
            is_open: false,
        };
        match kind {
            "none" => nat(Mapping::Open, Independent),
            "full-cone" => nat(Mapping::Independent, Independent),
            "address-restricted" => nat(Mapping::Independent, AddressDependent),
            "port-restricted" | "double" => nat(Mapping::Independent, AddressAndPortDependent),
            "symmetric" => nat(Mapping::Dependent { step: None }, AddressAndPortDependent),
            "udp-blocked" => End {
                udp: Udp::Blocked,
                ..nat(Mapping::Unknown, Filtering::Unknown)
            },
            "v6-only" => End {
                v4: false,
                v6: true,
                ..nat(Mapping::Open, Independent)
            },
            other => panic!("{other}"),
        }
    }

    const KINDS: [&str; 8] = [
        "none",
        "full-cone",
        "address-restricted",
        "port-restricted",
        "symmetric",
        "double",
        "udp-blocked",
        "v6-only",
    ];

    fn facts(here: &str, there: &str) -> Facts {
        Facts {
            here: end(here),
            there: Some(end(there)),
            ..Facts::default()
        }
    }

    #[test]
    fn each_pair_of_the_grid_that_is_relayed_has_the_reason_that_theory_gives() {
        for here in KINDS {
            for there in KINDS {
                let known = facts(here, there);
                let word = reason(&known).word();
                let v6 = |kind: &str| kind == "v6-only";
                let want = match (here, there) {
                    ("udp-blocked", _) | (_, "udp-blocked") => "udp-blocked",
                    ("v6-only", other) | (other, "v6-only") if other != "none" && !v6(other) => {
                        "no-common-family"
                    }
                    ("symmetric", "symmetric") => "symmetric-nat-both",
                    ("symmetric", "port-restricted" | "double") => "symmetric-nat-here",
                    ("port-restricted" | "double", "symmetric") => "symmetric-nat-there",
                    // Theory allows a direct path: where there is none, somebody is silent.
                    _ => "peer-silent",
                };
                assert_eq!(word, want, "{here} x {there}");
                let searching = Facts {
                    searching: true,
                    ..known
                };
                // While it is tried, what cannot be is still told, and what may be is not blamed on anybody.
                let early = match want {
                    "udp-blocked" | "no-common-family" | "symmetric-nat-both" => want,
                    _ => "probing",
                };
                assert_eq!(reason(&searching).word(), early, "{here} x {there}");
            }
        }
    }

    /// Every combination of everything that is looked at.
    fn all() -> Vec<Facts> {
        let flags = [false, true];
        let mut ends = Vec::new();
        for udp in [Udp::Open, Udp::Blocked, Udp::Off] {
            for (v4, v6) in [(true, true), (true, false), (false, true), (false, false)] {
                for mapping in [
                    Mapping::Unknown,
                    Mapping::Open,
                    Mapping::Independent,
                    Mapping::Dependent { step: Some(2) },
                ] {
                    for filtering in [
                        Filtering::Unknown,
                        Filtering::Independent,
                        Filtering::AddressDependent,
                        Filtering::AddressAndPortDependent,
                    ] {
                        ends.push(End {
                            udp,
                            v4,
                            v6,
                            mapping,
                            filtering,
                            is_open: false,
                        });
                    }
                }
            }
        }
        let mut all = Vec::new();
        for here in &ends {
            for there in ends.iter().map(|end| Some(*end)).chain([None]) {
                for bits in 0..8 {
                    all.push(Facts {
                        here: *here,
                        there,
                        denied: flags[bits & 1],
                        black_hole: flags[bits >> 1 & 1],
                        searching: flags[bits >> 2],
                    });
                }
            }
        }
        all
    }

    #[test]
    fn the_reason_is_the_same_from_both_ends_and_names_the_right_side() {
        for known in all() {
            // What only one end knows, and an end that has told nothing, has no mirror.
            let (Some(there), false) = (known.there, known.denied) else {
                continue;
            };
            let mirrored = Facts {
                here: there,
                there: Some(known.here),
                ..known
            };
            let want = match reason(&known).word() {
                "symmetric-nat-here" => "symmetric-nat-there",
                "symmetric-nat-there" => "symmetric-nat-here",
                other => other,
            };
            assert_eq!(reason(&mirrored).word(), want, "{known:?}");
        }
    }

    #[test]
    fn a_reason_is_never_what_the_facts_exclude() {
        for known in all() {
            let why = reason(&known);
            let there = known.there;
            let dependent = |end: End| matches!(end.mapping, Mapping::Dependent { .. });
            let holds = match why {
                Reason::Symmetric(Side::Both) => {
                    dependent(known.here) && there.is_some_and(dependent)
                }
                Reason::Symmetric(Side::Here) => dependent(known.here) && !known.searching,
                Reason::Symmetric(Side::There) => there.is_some_and(dependent) && !known.searching,
                Reason::UdpBlocked(_) => {
                    known.here.udp == Udp::Blocked
                        || there.is_some_and(|end| end.udp == Udp::Blocked)
                }
                Reason::NoCommonFamily => there.map_or(!known.here.v4 && !known.here.v6, |there| {
                    !(known.here.v4 && there.v4 || known.here.v6 && there.v6)
                }),
                Reason::Probing => known.searching,
                Reason::Policy => known.denied,
                Reason::PeerSilent => !known.searching && !known.denied && !known.black_hole,
                Reason::BlockedData => known.black_hole,
                Reason::RelayOnlyByChoice(_) => {
                    known.here.udp == Udp::Off || there.is_some_and(|end| end.udp == Udp::Off)
                }
            };
            assert!(holds, "{why:?} of {known:?}");
        }
    }

    #[test]
    fn every_reason_but_probing_names_one_remedy_and_the_peer_or_this_machine() {
        for known in all() {
            let why = reason(&known);
            assert_eq!(why.remedy("c").is_none(), why == Reason::Probing, "{why:?}");
            assert!(!why.cause("c", &known).is_empty());
            if let Reason::Symmetric(_) = why {
                assert!(why.cause("c", &known).contains("symmetric"));
            }
        }
        let told = facts("udp-blocked", "none");
        assert_eq!(reason(&told).cause("c", &told), "UDP is blocked here");
        let remedy = reason(&told).remedy("c").unwrap();
        assert!(remedy.starts_with("here, let byway's UDP port"), "{remedy}");
        let told = facts("none", "udp-blocked");
        assert_eq!(reason(&told).cause("c", &told), "UDP is blocked at c");
        let told = facts("full-cone", "v6-only");
        assert_eq!(
            reason(&told).cause("c", &told),
            "this machine has only IPv4 and c has only IPv6"
        );
    }
}
