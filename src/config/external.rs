//! `transport.external`, `transport.stun` and `transport.external_urls`: who says where this machine is seen from outside.

use std::net::{IpAddr, SocketAddr};

use hyper::Uri;

/// Servers, and addresses of pages, that are asked at most.
const MOST: usize = 8;
/// The port of a STUN server that names none (RFC 8489).
const STUN_PORT: u16 = 3478;
/// The longest text that is looked at, in bytes.
const LONGEST: usize = 512;

/// Who says where this machine is seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum External {
    /// Members alone, in what they answer anyhow.
    Members,
    /// Beside them the first STUN server that answers.
    Stun,
    /// Beside them the first page that answers.
    Url,
    /// Whatever more than half of all say: members, STUN servers and pages.
    Consensus,
}

impl External {
    /// Every word, in the order of the values.
    pub(super) const WORDS: [&str; 4] = ["members", "stun", "url", "consensus"];

    /// The word in a file.
    pub fn as_str(self) -> &'static str {
        match self {
            External::Members => "members",
            External::Stun => "stun",
            External::Url => "url",
            External::Consensus => "consensus",
        }
    }

    /// The value of a word that is one of [`WORDS`](Self::WORDS).
    pub(super) fn of(word: &str) -> External {
        match word {
            "stun" => External::Stun,
            "url" => External::Url,
            "consensus" => External::Consensus,
            _ => External::Members,
        }
    }

    /// Whether STUN servers are asked.
    pub fn asks_stun(self) -> bool {
        matches!(self, External::Stun | External::Consensus)
    }

    /// Whether pages are asked.
    pub fn asks_urls(self) -> bool {
        matches!(self, External::Url | External::Consensus)
    }
}

/// STUN servers, each as `HOST:PORT`.
///
/// # Errors
/// What is wrong, with the text.
pub(super) fn servers(list: &[String]) -> Result<Vec<String>, String> {
    few(list)?;
    list.iter().map(|text| server(text)).collect()
}

fn server(text: &str) -> Result<String, String> {
    let wrong = || format!("{} is no HOST:PORT", shown(text));
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, STUN_PORT).to_string());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0)
            .then(|| address.to_string())
            .ok_or_else(wrong);
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| wrong())?),
        None => (text, STUN_PORT),
    };
    if port == 0 || !is_name(name) {
        return Err(wrong());
    }
    Ok(format!("{name}:{port}"))
}

/// Addresses of pages that say nothing but the IP address of who asks.
///
/// # Errors
/// What is wrong, with the text.
pub(super) fn urls(list: &[String]) -> Result<Vec<String>, String> {
    few(list)?;
    list.iter().map(|text| url(text)).collect()
}

fn url(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("{} is no address of a page: {why}", shown(text));
    if text.len() > LONGEST {
        return Err(wrong("it is too long"));
    }
    let uri: Uri = text
        .parse()
        .map_err(|_| wrong("expected https://HOST/PATH or http://HOST/PATH"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("expected https://HOST/PATH or http://HOST/PATH"));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = uri.host().unwrap_or_default();
    let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if authority.contains('@') || !(is_ip || is_name(host)) || uri.port_u16() == Some(0) {
        return Err(wrong("its host is none"));
    }
    Ok(uri.to_string())
}

fn few(list: &[String]) -> Result<(), String> {
    match list.len() {
        0..=MOST => Ok(()),
        many => Err(format!("{many} are named: {MOST} at most")),
    }
}

/// Whether it may be the name of a host.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inner)
    };
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(is_label)
}

fn shown(text: &str) -> String {
    let shown: String = text.chars().take(100).collect();
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for (text, read) in [
            ("stun.example:3479", "stun.example:3479"),
            ("stun.example", "stun.example:3478"),
            ("192.0.2.1", "192.0.2.1:3478"),
            ("2001:db8::1", "[2001:db8::1]:3478"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ] {
            assert_eq!(server(text).as_deref(), Ok(read));
        }
        for bad in [
            "",
            ":3478",
            "a b:1",
            "stun.example:0",
            "192.0.2.1:0",
            "a:b:c",
            "x:99999",
            "stun://a:1",
            "-é:1",
        ] {
            server(bad).unwrap_err();
        }
        servers(&vec!["a".to_owned(); 9]).unwrap_err();
    }

    #[test]
    fn a_page_is_asked_over_http_or_https_at_a_host() {
        for good in [
            "https://ip.example/",
            "https://[2001:db8::1]:8443/v6",
            "http://ip.example/",
            "http://ip.example:8080/v4?text",
            "http://192.0.2.1/x",
            "http://[2001:db8::1]:80/",
        ] {
            assert_eq!(url(good).as_deref(), Ok(good));
        }
        let refused = url("httpss://ip.example/").unwrap_err();
        assert!(
            refused.contains("httpss://ip.example/") && refused.contains("https://HOST/PATH"),
            "{refused}"
        );
        for bad in [
            "https://",
            "https://u:p@ip.example/",
            "https://x:0/",
            "https://-é.example/",
            "",
            "ip.example",
            "ftp://ip.example/",
            "http://",
            "http://u:p@ip.example/",
            "http://a b/",
            "http://x:0/",
            "file:///etc/passwd",
        ] {
            url(bad).unwrap_err();
        }
        let long = format!("http://a/{}", "x".repeat(600));
        url(&long).unwrap_err();
    }
}
