//! What this node answers of `/byway/service/1`, and who has another version of it.

use std::sync::Arc;

use super::clock;
use crate::api::types::{Error, ErrorKind, Problem};
use crate::model::id::PeerId;
use crate::node::Node;
use crate::p2p::{Handle, PeerStatus};
use crate::service::{Handler, KindTaken, Router, Service, ping};
use crate::wire::agent::VERSIONS;
use crate::wire::service::kind;

fn router(clocks: &Arc<clock::Clocks>) -> Result<Router<Handler>, KindTaken> {
    let mut router = Router::default();
    router.add(kind::PING, ping::method())?;
    router.add(kind::CLOCK, clock::method(clocks))?;
    Ok(router)
}

/// Everything that is answered here.
///
/// # Errors
/// `E-START` where two services answer one kind; `E-RANDOM` without randomness.
pub(super) fn start(clocks: &Arc<clock::Clocks>, node: &Node, peers: &Handle) -> Result<Service, Error> {
    let failed = |code: &'static str, why: String| Error::new(ErrorKind::Failed, code, why);
    let router = router(clocks).map_err(|taken| failed("E-START", taken.to_string()))?;
    let seed = getrandom::u64().map_err(|e| failed("E-RANDOM", e.to_string()))?;
    Ok(Service::new(router, node.view(), peers.clone(), seed))
}

/// What `status` says of connected members with whom this program has no version in common.
pub(super) fn problems<'a>(
    known: impl Iterator<Item = &'a PeerStatus>,
    name: impl Fn(PeerId) -> String,
) -> Vec<Problem> {
    let told = |peer: &PeerStatus| {
        let agent = peer.agent.as_ref()?;
        let why = agent.no_common()?;
        let name = name(peer.peer);
        let older = if agent.versions.least > VERSIONS.most { "this machine".to_owned() } else { name.clone() };
        Some(Problem {
            code: "E-VERSION".into(),
            severity: "warning".into(),
            message: format!("{name} and this machine do not understand each other: {why}"),
            help: format!("install a newer byway on {older}"),
        })
    };
    known.filter_map(told).collect()
}
