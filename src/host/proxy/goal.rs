//! Where a map leads that proxies serve.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::super::door::{PROBE, refuses};
use crate::model::host::MapConfig;

/// Where a map leads, and for whom. Flows end when either changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Goal {
    /// Where it leads.
    pub target: SocketAddr,
    /// Prefixes of the clients that are let in; an empty list lets everyone in.
    pub allow: Vec<IpNet>,
    /// Whether nobody new is let in. Flows of before go on.
    pub draining: bool,
}

impl Goal {
    /// Where `map` leads, whose target is at that address and port.
    pub fn of(target: SocketAddr, map: &MapConfig) -> Goal {
        Goal {
            target,
            allow: map.allow.clone(),
            draining: map.draining,
        }
    }

    /// Whether this is the goal of `map`.
    pub fn is_of(&self, target: SocketAddr, map: &MapConfig) -> bool {
        (self.target, self.draining) == (target, map.draining) && self.allow == map.allow
    }

    /// Whether a client at that address may use the map.
    pub fn lets_in(&self, client: IpAddr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&client))
    }

    /// Whether flows to this goal are no longer those of `now`.
    pub fn is_over(&self, now: &Goal) -> bool {
        (self.target, &self.allow) != (now.target, &now.allow)
    }

    /// Whether a TCP client that comes now is refused.
    pub async fn is_shut(&self) -> bool {
        self.draining || refuses(self.target, PROBE).await
    }
}
