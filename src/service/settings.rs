//! What the configuration says of meeting points, relaying and denied addresses, told to those who keep to it: at the start,
//! and whenever it changes.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Mesh;
use crate::config::{Config, ConfigError, RelayFor, RelayOffer};
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

/// What to do about a certificate that cannot be used.
pub(crate) const CERTIFICATE: &str = "name a certificate and its own private key, both in PEM and readable for byway's user; \
                                      without both keys one is made";

/// Why the certificate that is to be shown inside TLS cannot be used, as an error of the key whose file it is; none where it can
/// be, and where none is needed. Blocks on its files.
pub(crate) fn unusable_certificate(config: &Config) -> Option<ConfigError> {
    let (chain, key) = config.certificate()?;
    let files = Certificate {
        chain: chain.to_owned(),
        key: key.to_owned(),
    };
    let why = files.check().err()?;
    let is_about = |path: &Path| why.strip_prefix(&format!("{}: ", path.display()));
    // Where one file is named for both, it is the key that is missing in it more often.
    let (of, why) = match (is_about(key), is_about(chain)) {
        (Some(why), _) => ("transport.tls_key", why),
        (None, Some(why)) => ("transport.tls_cert", why),
        (None, None) => ("transport.tls_key", why.as_str()),
    };
    config.wrong(of, why)
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

    /// A certificate and its key, in PEM.
    fn certificate() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_that_cannot_be_used_is_told_by_the_key_whose_file_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let ((chain, key), (_, other)) = (certificate(), certificate());
        for (name, text) in [("cert", &chain), ("key", &key), ("other", &other)] {
            std::fs::write(path(name), text).unwrap();
        }
        let told = |listen: &str, cert: &str, key: &str| {
            let file = dir.path().join("byway.toml");
            let (cert, key) = (path(cert), path(key));
            let text = format!(
                "[transport]\nlisten = \"{listen}\"\ntls_cert = \"{cert}\"\ntls_key = \"{key}\"\n"
            );
            std::fs::write(&file, text).unwrap();
            let config = Config::load(&crate::config::Sources {
                file: Some(file),
                ..Default::default()
            });
            unusable_certificate(&config.unwrap()).map(|wrong| wrong.to_string())
        };
        let inside = "tcp/443/wss";
        assert_eq!(told(inside, "cert", "key"), None);
        for (cert, key, of, why) in [
            ("cert", "nosuch", "4: transport.tls_key = ", "No such file"),
            ("nosuch", "key", "3: transport.tls_cert = ", "No such file"),
            ("key", "other", "3: transport.tls_cert = ", "no certificate"),
            ("cert", "cert", "4: transport.tls_key = ", ""),
            ("cert", "other", "4: transport.tls_key = ", ""),
        ] {
            let said = told(inside, cert, key).unwrap();
            assert!(
                said.contains(of) && said.contains(why),
                "{cert} {key}: {said}"
            );
        }
        assert_eq!(
            told("tcp/4100", "cert", "nosuch"),
            None,
            "nobody is shown it"
        );
    }
}
