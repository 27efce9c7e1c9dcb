//! Policy routing rules: ours, and those of other programs that are asked before them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::IpVersion;

use super::inner::each;
use super::netlink::Netlink;
use crate::model::host::{Ahead, Change, Family, Namespace, Observed, PRIORITY, PROTOCOL, Rule};

/// Number of the routing table `local`.
const LOCAL: u32 = 255;
/// Times that our rules are moved back in front within [`WINDOW`]; after that whoever fights for the place has it.
const MOVES: usize = 3;
/// The time in which [`MOVES`] are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The rules of ours that stand, and per family the first one of another program.
pub(super) type Found = (BTreeSet<Rule>, BTreeMap<Family, Ahead>);

impl Netlink {
    /// Reads the rules of this namespace. `ours` says which of those with our protocol number are meant.
    pub(super) async fn rules(&self, ours: impl Fn(&Rule) -> bool) -> anyhow::Result<Found> {
        let (mut rules, mut ahead) = Found::default();
        for version in [IpVersion::V4, IpVersion::V6] {
            let (mut local, mut first): (Option<u32>, Option<Other>) = (None, None);
            let mut family = None;
            each(
                "rules",
                self.handle.rule().get(version).execute(),
                |message| {
                    let parts = Parts::of(&message);
                    family = family.or(parts.family);
                    match parts.rule() {
                        Some(rule) => rules.extend(Some(rule).filter(&ours)),
                        None if parts.table == LOCAL => {
                            local = local.min(Some(parts.priority)).or(Some(parts.priority))
                        }
                        None => first = [first.take(), parts.other()].into_iter().flatten().min(),
                    }
                },
            )
            .await?;
            if let (Some(family), Some(Other(priority, what))) = (family, first) {
                ahead.insert(
                    family,
                    Ahead {
                        priority,
                        local: local.unwrap_or(0),
                        what,
                    },
                );
            }
        }
        Ok((rules, ahead))
    }
}

/// A rule of another program that may lead a packet of ours elsewhere: its priority, and what it does.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Other(u32, String);

struct Parts {
    family: Option<Family>,
    action: RuleAction,
    table: u32,
    priority: u32,
    source: Option<std::net::IpAddr>,
    protocol: Option<RouteProtocol>,
    /// It is only for packets of a virtual routing domain (VRF).
    domain: bool,
}

impl Parts {
    fn of(message: &RuleMessage) -> Parts {
        let mut parts = Parts {
            family: match message.header.family {
                AddressFamily::Inet => Some(Family::V4),
                AddressFamily::Inet6 => Some(Family::V6),
                _ => None,
            },
            action: message.header.action,
            table: u32::from(message.header.table),
            priority: 0,
            source: None,
            protocol: None,
            domain: false,
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Table(id) => parts.table = *id,
                RuleAttribute::Source(address) => parts.source = Some(*address),
                RuleAttribute::Priority(number) => parts.priority = *number,
                RuleAttribute::Protocol(number) => parts.protocol = Some(*number),
                RuleAttribute::L3MDev(domain) => parts.domain = *domain,
                _ => {}
            }
        }
        parts
    }

    /// A rule of ours, or of another daemon like this one: the protocol number is the mark.
    fn rule(&self) -> Option<Rule> {
        let marked = self.protocol == Some(RouteProtocol::Other(PROTOCOL));
        let (source, table, priority) = (self.source, self.table, self.priority);
        self.family.filter(|_| marked).map(|family| Rule {
            family,
            source,
            table,
            priority,
        })
    }

    fn other(&self) -> Option<Other> {
        let what = match self.action {
            RuleAction::Nop | RuleAction::Unspec => return None,
            _ if self.domain => return None,
            RuleAction::ToTable => format!("lookup {}", self.table),
            action => format!("{action:?}").to_lowercase(),
        };
        Some(Other(self.priority, what))
    }
}

pub(super) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    if let Some(source) = rule.source {
        message.header.src_len = if source.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RuleAttribute::Source(source));
    }
    message
}

/// Whether an event of a rule is about ours, or about one that may stand before them.
pub(super) fn concerns(message: &RuleMessage) -> bool {
    let parts = Parts::of(message);
    parts.rule().is_some() || parts.priority <= PRIORITY
}

/// The moments at which our rules were moved back in front, by namespace.
#[derive(Debug, Default)]
pub(super) struct Moves(BTreeMap<Namespace, VecDeque<Instant>>);

impl Moves {
    /// Marks the namespaces where our rules have been moved too often: there they stay for now.
    pub(super) fn limit(&mut self, observed: &mut Observed, now: Instant) {
        self.0.retain(|_, moves| {
            moves.retain(|at| now.saturating_duration_since(*at) < WINDOW);
            !moves.is_empty()
        });
        observed.stay = self
            .0
            .iter()
            .filter(|(_, moves)| moves.len() >= MOVES)
            .map(|(p, _)| p.clone())
            .collect();
    }

    /// Notes which of the changes that are being made move a rule of ours forward.
    pub(super) fn note(&mut self, observed: &Observed, changes: &[Change], now: Instant) {
        let forward = |ns: &Namespace, rule: &Rule| {
            let behind = |old: &Rule| old.is_same_as(rule) && old.priority > rule.priority;
            observed
                .namespaces
                .get(ns)
                .is_some_and(|state| state.rules.iter().any(behind))
        };
        let moved: BTreeSet<&Namespace> = changes
            .iter()
            .filter_map(|change| match change {
                Change::AddRule { ns, rule } if forward(ns, rule) => Some(ns),
                _ => None,
            })
            .collect();
        for ns in moved {
            self.0.entry(ns.clone()).or_default().push_back(now);
        }
    }
}
