//! What the configuration says of meeting points, relaying and denied addresses, told to those who keep to it: at the start,
//! and whenever it changes.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Mesh;
use crate::config::{Config, RelayFor, RelayOffer};
use crate::p2p::{Certificate, Command, Serve, Typed};

/// The relays to keep a place at: the bootstrap addresses that name a peer and lead straight to it, in their order.
pub(crate) fn meeting(config: &Config) -> Vec<Typed> {
    let typed = config
        .bootstrap
        .iter()
        .filter_map(|text| text.parse::<Typed>().ok());
    typed
        .filter(|typed| typed.address().peer().is_some() && typed.address().relay().is_none())
        .collect()
}

/// Whom this node serves as a relay.
pub(crate) fn serve(config: &Config) -> Serve {
    if config.relay.offer == RelayOffer::Never {
        return Serve::Nobody;
    }
    match &config.relay.for_whom {
        RelayFor::Auto if config.relay_only => Serve::Anyone,
        RelayFor::Auto | RelayFor::Members => Serve::Members,
        RelayFor::Anyone => Serve::Anyone,
        RelayFor::Peers(peers) => Serve::Only(peers.iter().copied().collect()),
    }
}

/// The certificate to show inside TLS; none where one is to be made.
pub(crate) fn certificate(config: &Config) -> Option<Certificate> {
    let (chain, key) = config.tls_cert.clone().zip(config.tls_key.clone())?;
    Some(Certificate { chain, key })
}

/// Passes changes of the configuration on until `stop`. The peers' task was started with the configuration of the start.
pub(crate) async fn follow(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut changes = mesh.follow_config();
    let mut config = changes.borrow_and_update().clone();
    if let Some(direct) = &mesh.direct {
        direct.deny(config.deny_cidrs.clone()).await;
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed?,
        }
        let next = changes.borrow_and_update().clone();
        tell(&mesh, &config, &next).await?;
        config = next;
    }
}

/// Passes on what differs between two configurations.
async fn tell(mesh: &Mesh, before: &Config, next: &Config) -> anyhow::Result<()> {
    if before.deny_cidrs != next.deny_cidrs {
        let denied = next.deny_cidrs.clone();
        mesh.peers.send(Command::Deny(denied.clone())).await?;
        if let Some(direct) = &mesh.direct {
            direct.deny(denied).await;
        }
    }
    if before.bootstrap != next.bootstrap {
        mesh.peers.send(Command::Meeting(meeting(next))).await?;
    }
    let serves = serve(next);
    if serve(before) != serves {
        mesh.peers.send(Command::Serve(serves)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;

    #[test]
    fn whom_a_node_serves_follows_from_its_configuration() {
        let peer = PeerId([7; 32]);
        let only = Serve::Only([peer].into());
        for (relay_only, offer, for_whom, serves) in [
            (false, RelayOffer::Auto, RelayFor::Auto, Serve::Members),
            (true, RelayOffer::Auto, RelayFor::Auto, Serve::Anyone),
            (false, RelayOffer::Always, RelayFor::Anyone, Serve::Anyone),
            (true, RelayOffer::Always, RelayFor::Peers(vec![peer]), only),
            (false, RelayOffer::Never, RelayFor::Anyone, Serve::Nobody),
            (true, RelayOffer::Never, RelayFor::Auto, Serve::Nobody),
        ] {
            let mut config = Config::defaults("a");
            config.relay_only = relay_only;
            config.relay.offer = offer;
            config.relay.for_whom = for_whom;
            assert_eq!(serve(&config), serves, "{:?}", config.relay);
        }
    }

    #[test]
    fn only_a_bootstrap_address_that_leads_straight_to_a_named_peer_is_a_meeting_point() {
        let mut config = Config::defaults("a");
        let named = format!("/ip4/192.0.2.7/udp/4100/quic-v1/p2p/{}", PeerId([7; 32]));
        let through = format!("{named}/p2p-circuit/p2p/{}", PeerId([8; 32]));
        config.bootstrap = vec!["/ip4/192.0.2.8/tcp/4100".to_owned(), through, named.clone()];
        let met: Vec<String> = meeting(&config)
            .iter()
            .map(|typed| typed.address().to_string())
            .collect();
        assert_eq!(met, [named]);
    }
}
