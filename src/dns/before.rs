//! Whom a container asked before us: the servers its own resolver file named, asked from within its namespace.
//!
//! The server inside a container (Docker's 127.0.0.11) knows the containers beside it and answers nowhere else. So what is not ours goes
//! there first. Where it says nothing the host's resolvers are asked: a container without a network of its own has nobody
//! else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use hickory_resolver::Resolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use parking_lot::Mutex;

use super::upstream::{Resolvers, is_answer, resolver};
use super::way::{Door, Way};
use crate::model::host::NetnsRef;

/// How long it is asked alone; a server inside the machine has answered by then.
const ALONE: Duration = Duration::from_millis(400);

/// A turn of those who ask the same: the one that holds it asks, and the others wait.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// The former servers of one namespace.
pub(super) struct Before {
    netns: NetnsRef,
    servers: Vec<SocketAddr>,
    resolver: Resolver<Way>,
    /// The questions under way, each with the turn that those who ask the same wait for.
    asking: Mutex<HashMap<(Name, RecordType), Turn>>,
}

impl Before {
    /// Makes the resolver for them; none where there is no server, or no resolver can be made.
    pub(super) fn new(netns: &NetnsRef, servers: &[SocketAddr], door: &Door) -> Option<Before> {
        let way = Way::within(netns.clone(), Arc::clone(door));
        // Nothing is kept: these come and go, and who asked them kept nothing either.
        let resolver = resolver(servers, false, 0, way)?;
        Some(Before {
            netns: netns.clone(),
            servers: servers.to_vec(),
            resolver,
            asking: Mutex::default(),
        })
    }

    /// Whether it is the one for these.
    pub(super) fn is_for(&self, netns: &NetnsRef, servers: &[SocketAddr]) -> bool {
        self.netns == *netns && self.servers == servers
    }

    /// Asks the former servers, and the host's resolvers `host` where those say nothing.
    pub(super) async fn lookup(
        &self,
        host: Option<&Resolvers>,
        name: &Name,
        kind: RecordType,
    ) -> Result<Lookup, NetError> {
        // A server that was told to ask us for what it does not know sends the same question back while it is asked. That one
        // goes to the host, so that it goes round once and not for ever. Two who ask the same at once only take turns.
        let turn = self.turn(name, kind);
        let Ok(_mine) = tokio::time::timeout(ALONE, turn.lock()).await else {
            return ask_host(host, name, kind).await;
        };
        let mut own = pin!(self.resolver.lookup(name.clone(), kind));
        match tokio::time::timeout(ALONE, &mut own).await {
            Ok(answer) if is_answer(&answer) => return answer,
            Ok(_) => return ask_host(host, name, kind).await,
            Err(_) => {}
        }
        // It takes its time. The host's resolvers are asked beside it, but that they know no such name counts only when it
        // says nothing.
        let mut theirs = pin!(ask_host(host, name, kind));
        let none = tokio::select! {
            answer = &mut own => {
                return if is_answer(&answer) { answer } else { theirs.await };
            }
            answer = &mut theirs => answer,
        };
        if none.is_ok() {
            return none;
        }
        let answer = own.await;
        if is_answer(&answer) { answer } else { none }
    }

    fn turn(&self, name: &Name, kind: RecordType) -> Turn {
        let mut asking = self.asking.lock();
        asking.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(asking.entry((name.to_lowercase(), kind)).or_default())
    }
}

async fn ask_host(
    host: Option<&Resolvers>,
    name: &Name,
    kind: RecordType,
) -> Result<Lookup, NetError> {
    match host {
        Some(host) => host.lookup(name, kind).await,
        None => Err(NetError::from("there are no resolvers")),
    }
}
