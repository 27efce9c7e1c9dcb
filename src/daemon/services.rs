//! What this node answers of `/byway/service/1`.

use std::sync::Arc;

use super::clock;
use crate::api::types::{Error, ErrorKind};
use crate::node::Node;
use crate::p2p::Handle;
use crate::service::{Handler, KindTaken, Router, Service, ping};
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
