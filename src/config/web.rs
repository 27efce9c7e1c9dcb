//! What the keys of WebSockets and of the proxy ask for together.

use std::path::Path;

use super::{Config, ConfigError, keys};
use crate::model::proxy::{NoPlace, Past};

/// Keys whose values hold a password: no error quotes one, and what is shown of it leaves the password out.
pub(super) const SECRET: &[&str] = &["transport.proxy"];

/// What may stand in `transport.listen`.
pub(super) const LISTEN: &str =
    "udp/PORT, tcp/PORT, tcp/PORT/wss, tcp/PORT/ws, IP, IP:PORT, a multiaddr or none";

/// Refuses a TCP port that is to take two transports.
pub(super) fn one_transport_each(addresses: &[String]) -> Result<(), String> {
    let mut ports = std::collections::BTreeMap::new();
    for address in addresses {
        let below = address.trim_end_matches("/wss").trim_end_matches("/ws");
        if let Some(other) = ports.insert(below, address) {
            return Err(format!(
                "{other} and {address}: one port takes TCP, WebSockets or WebSockets inside TLS"
            ));
        }
    }
    Ok(())
}

/// Places that are reached past the proxy.
pub(super) fn places(list: &[String]) -> Result<Vec<Past>, String> {
    let place = |text: &String| {
        text.parse::<Past>()
            .map_err(|e: NoPlace| format!("{text:?}: {e}"))
    };
    list.iter().map(place).collect()
}

impl Config {
    /// Whether anything is listened on where a WebSocket is spoken, inside TLS or not.
    pub(super) fn listens_to_websockets(&self) -> bool {
        self.listens_inside_tls() || self.listen.iter().any(|at| at.ends_with("/ws"))
    }

    /// Whether anything is listened on where a WebSocket is inside TLS.
    pub(super) fn listens_inside_tls(&self) -> bool {
        self.listen.iter().any(|at| at.ends_with("/wss"))
    }

    /// A certificate is of no use without its key, nor a key without its certificate.
    pub(super) fn half_a_certificate(&self) -> Option<ConfigError> {
        let (path, other) = match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => ("transport.tls_cert", "transport.tls_key"),
            (None, Some(_)) => ("transport.tls_key", "transport.tls_cert"),
            _ => return None,
        };
        self.wrong(
            path,
            &format!("{other} is missing: the one is of no use without the other"),
        )
    }

    /// The error that a key's value is wrong, with where it was said; none where the key was not set.
    pub fn wrong(&self, path: &str, why: &str) -> Option<ConfigError> {
        let (key, place) = (keys::find(path)?, self.origins.get(path)?);
        let shown = (key.show)(self).to_string();
        Some(ConfigError::value(place.clone(), path, &shown, why))
    }

    /// The files of the certificate that is to be shown, and of its key; none where nothing is listened on that needs them, or
    /// one is to be made.
    pub fn certificate(&self) -> Option<(&Path, &Path)> {
        let files = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        files.filter(|_| self.listens_inside_tls())
    }

    /// Whether a key has another value in `fresh`. What is shown of a secret tells not all of it.
    pub(super) fn differs(&self, fresh: &Config, key: &keys::Key) -> bool {
        let is_secret = SECRET.contains(&key.path);
        (key.show)(self) != (key.show)(fresh) || (is_secret && self.proxy != fresh.proxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, Value};

    /// What is read of the transport's settings.
    fn read(text: &str) -> Result<Config, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("byway.toml");
        std::fs::write(&file, format!("[transport]\n{text}\n")).unwrap();
        let sources = Sources {
            file: Some(file),
            host: "a".to_owned(),
            ..Sources::default()
        };
        let said = |errors: Vec<ConfigError>| errors.iter().map(|e| e.message.clone()).collect();
        Config::load(&sources).map_err(said)
    }

    fn wrong(text: &str) -> String {
        read(text).unwrap_err().join("\n")
    }

    #[test]
    fn websockets_are_listened_on_in_both_families_and_one_port_takes_one_transport() {
        let config = read("listen = [\"udp/443\", \"tcp/443/wss\", \"tcp/8080/ws\"]").unwrap();
        let web: Vec<&str> = config.listen[2..].iter().map(String::as_str).collect();
        assert_eq!(
            web,
            [
                "/ip4/0.0.0.0/tcp/443/wss",
                "/ip6/::/tcp/443/wss",
                "/ip4/0.0.0.0/tcp/8080/ws",
                "/ip6/::/tcp/8080/ws"
            ]
        );
        let same = "listen = [\"wss://192.0.2.1\", \"192.0.2.2:443\"]";
        let same = read(same).unwrap().listen;
        assert_eq!(
            same.len(),
            3,
            "an address alone is taken by UDP and TCP: {same:?}"
        );
        assert_eq!(same[0], "/ip4/192.0.2.1/tcp/443/wss");
        for (listen, why) in [
            ("[\"tcp/443\", \"tcp/443/wss\"]", "one port takes"),
            ("[\"udp/443/wss\"]", "expected udp/PORT"),
            ("[\"tcp/443/http\"]", "expected udp/PORT"),
            ("[\"tcp/0/ws\"]", "a port from 1"),
            ("[\"wss://192.0.2.1/path\"]", "none is named"),
            ("[\"wss://a.example\"]", "expected udp/PORT"),
        ] {
            let said = wrong(&format!("listen = {listen}"));
            assert!(said.contains(why), "{listen}: {said}");
        }
    }

    #[test]
    fn nobody_is_shown_the_proxy_s_password() {
        let config = read("proxy = \"http://alice:secret@p:3128\"").unwrap();
        let (_, shown, _) = config
            .values()
            .find(|(path, ..)| *path == "transport.proxy")
            .unwrap();
        assert_eq!(shown, Value::Text("http://***@p:3128".to_owned()));
        for bad in [
            "proxy = \"socks5://alice:secret@p:3128\"",
            "proxy = \"http://alice:secret@p:0\"",
            "proxy = [\"http://alice:secret@p:3128\"]",
            "proxy = { url = \"http://alice:secret@p:3128\" }",
        ] {
            let said = wrong(bad);
            assert!(said.starts_with("transport.proxy"), "{said}");
            assert!(
                !said.contains("alice") && !said.contains("secret"),
                "{said}"
            );
        }
        let other = read("proxy = \"http://alice:other@p:3128\"").unwrap();
        let (_, taken, restart) = config.taking_over(&other);
        assert_eq!((taken.len(), restart), (0, vec!["transport.proxy"]));
    }

    #[test]
    fn a_place_past_the_proxy_that_nobody_understands_is_refused_and_one_without_a_proxy_is_idle() {
        let said = wrong("no_proxy = [\"corp.example\", \"10.0.0.0/33\"]");
        assert!(
            said.contains("transport.no_proxy")
                && said.contains("\"10.0.0.0/33\": expected a name"),
            "{said}"
        );
        let alone = read("no_proxy = [\"corp.example\"]").unwrap();
        assert_eq!(alone.idle()[0].key, "transport.no_proxy");
        let both = read("proxy = \"env\"\nno_proxy = [\"corp.example\", \"10.1.2.3/8\"]").unwrap();
        assert_eq!(both.idle(), []);
        let (_, shown, _) = both
            .values()
            .find(|(path, ..)| *path == "transport.no_proxy")
            .unwrap();
        assert_eq!(shown.to_string(), "[\"corp.example\", \"10.0.0.0/8\"]");
    }

    #[test]
    fn proxies_that_are_trusted_are_prefixes_and_say_something_only_of_websockets() {
        let trusted = "trusted_proxies = [\"127.0.0.1\", \"2001:db8::/48\"]";
        for (listen, idle) in [("tcp/8080/ws", 0), ("tcp/443/wss", 0), ("tcp/4100", 1)] {
            let config = read(&format!("listen = \"{listen}\"\n{trusted}")).unwrap();
            assert_eq!(config.idle().len(), idle, "{listen}");
            assert_eq!(config.trusted_proxies.len(), 2);
        }
        let said = wrong("trusted_proxies = [\"127.0.0.1\", \"proxy.example\"]");
        assert!(
            said.contains("\"proxy.example\" is no address and no prefix"),
            "{said}"
        );
    }

    #[test]
    fn another_certificate_needs_no_restart() {
        let listen = "listen = \"tcp/443/wss\"\n";
        let files =
            |name: &str| format!("{listen}tls_cert = \"/{name}.pem\"\ntls_key = \"/{name}.key\"");
        let (none, one, two) = (read(listen), read(&files("a")), read(&files("b")));
        let [none, one, two] = [none, one, two].map(Result::unwrap);
        for (before, fresh) in [(&none, &one), (&one, &two), (&two, &none)] {
            let (next, taken, restart) = before.taking_over(fresh);
            let both = vec!["transport.tls_cert", "transport.tls_key"];
            assert_eq!((taken, restart), (both, vec![]));
            assert_eq!(
                (&next.tls_cert, &next.tls_key),
                (&fresh.tls_cert, &fresh.tls_key)
            );
        }
    }

    #[test]
    fn a_certificate_needs_its_key_and_somebody_to_show_it_to() {
        let said = wrong("tls_cert = \"/etc/byway/cert.pem\"");
        assert!(said.contains("transport.tls_key is missing"), "{said}");
        let said = wrong("tls_key = \"/etc/byway/key.pem\"");
        assert!(said.contains("transport.tls_cert is missing"), "{said}");
        let both = "tls_cert = \"/a.pem\"\ntls_key = \"/b.pem\"";
        let idle: Vec<String> = read(both)
            .unwrap()
            .idle()
            .iter()
            .map(|i| i.key.clone())
            .collect();
        assert_eq!(idle, ["transport.tls_cert", "transport.tls_key"]);
        let shown = read(&format!("listen = \"tcp/443/wss\"\n{both}")).unwrap();
        assert_eq!(shown.idle(), []);
    }
}
