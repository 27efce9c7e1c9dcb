//! What is said of the proxy that connections out go through: who began a dial that it refused has often forgotten why.

use super::Report;
use crate::api::types::{Problem, ProxyInfo};
use crate::model::error::Code;
use crate::node::unix_now;
use crate::p2p::ProxyStatus;

/// The proxy, with what it said last; none where there is none.
pub(super) fn info(ctx: &Report) -> Option<ProxyInfo> {
    let status = ctx.peers.proxy()?;
    let at = |age: std::time::Duration| unix_now().saturating_sub(age.as_secs());
    Some(ProxyInfo {
        address: status.at,
        connected_at: status.connected.map(at),
        refused_at: status.refused.as_ref().map(|(_, age)| at(*age)),
        refused: status.refused.map(|(why, _)| why),
        refused_place: status.place,
    })
}

/// What is not well with the proxy.
pub(super) fn problem(ctx: &Report) -> Option<Problem> {
    closed(&ctx.peers.proxy()?)
}

/// The problem of a proxy that nothing goes through. Where it alone forbids a place, that is its owner's will.
fn closed(status: &ProxyStatus) -> Option<Problem> {
    let said = status.said().filter(|_| status.is_closed())?;
    Some(Problem {
        code: Code::Proxy.into(),
        severity: "warning".into(),
        message: format!("nothing goes through the proxy: {said}"),
        help: "set transport.proxy to \"http://USER:PASSWORD@HOST:PORT\" as the proxy's owner says, and start the daemon again; \
               many proxies connect to port 443 alone"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_proxy_that_nothing_goes_through_is_a_warning_and_a_place_that_it_forbids_is_none() {
        let mut status = ProxyStatus {
            at: "p.example:3128".to_owned(),
            connected: None,
            refused: Some(("407, realm \"Corp net\"".to_owned(), Duration::from_secs(2))),
            place: None,
        };
        let told = closed(&status).unwrap();
        assert_eq!(
            (told.code.as_str(), told.severity.as_str()),
            ("E-PROXY", "warning")
        );
        assert!(
            told.message
                .ends_with("transport.proxy p.example:3128: 407, realm \"Corp net\""),
            "{}",
            told.message
        );
        status.connected = Some(Duration::from_secs(9));
        assert!(
            closed(&status).is_some(),
            "it said so after it had connected"
        );
        status.place = Some("a.example:4100".to_owned());
        assert_eq!(closed(&status), None);
        status.refused = None;
        assert_eq!(closed(&status), None);
    }
}
