//! The HTTP proxy that connections out go through, and what goes past it.
//!
//! Loopback and link-local addresses, and what [`Past`] names, never go through a proxy. The name and the password of a
//! proxy are shown to nobody: neither [`fmt::Display`] nor [`fmt::Debug`] writes them, and no error quotes the text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::heard::is_link_local;

/// The port of a proxy whose URL names none, as everywhere in HTTP.
const PORT: u16 = 80;
/// What is asked of the environment, in this order, each first in small letters. `http_proxy` is not: it is for plain HTTP.
const VARIABLES: [&str; 2] = ["https_proxy", "all_proxy"];
/// The entries of `no_proxy` in the environment that are read.
const EXEMPT: usize = 256;

/// Which proxy connections out go through (`transport.proxy`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// Nothing goes through a proxy.
    #[default]
    None,
    /// The environment names the proxy: `https_proxy`, else `all_proxy`.
    Env,
    /// Connections go through this one.
    Url(Proxy),
}

impl FromStr for Choice {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Choice, ProxyError> {
        match text {
            "none" => Ok(Choice::None),
            "env" => Ok(Choice::Env),
            url => url.parse().map(Choice::Url),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::None => f.write_str("none"),
            Choice::Env => f.write_str("env"),
            Choice::Url(proxy) => proxy.fmt(f),
        }
    }
}

/// The text names no proxy that can be used. The text is not quoted: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The URL has another scheme than `http`.
    #[error("only http:// proxies are spoken to (HTTP CONNECT), no https:// and no socks ones")]
    Scheme,
    /// The host is neither a name nor an address.
    #[error("expected \"none\", \"env\" or http://[USER:PASS@]HOST[:PORT]")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("the proxy's port is no number from 1 to 65535")]
    Port,
    /// Something stands behind the port.
    #[error("nothing may stand behind the host and the port of a proxy")]
    Path,
    /// The name or the password has a character that cannot be sent, or a `%` without two hexadecimal digits.
    #[error(
        "the proxy's user name or password cannot be read: %, @, : and / in them are written as %25, %40, %3A and %2F"
    )]
    Credentials,
}

/// A proxy that speaks HTTP CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// `NAME:PASSWORD`, decoded.
    credentials: Option<String>,
}

impl Proxy {
    /// The name or address of the proxy; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port of the proxy.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `NAME:PASSWORD`, if the proxy wants one.
    pub fn credentials(&self) -> Option<&str> {
        self.credentials.as_deref()
    }

    /// The host and the port, without the credentials.
    pub fn place(&self) -> String {
        place(&self.host, self.port)
    }
}

/// `HOST:PORT`, an IPv6 address in brackets.
pub fn place(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = if self.credentials.is_some() {
            "***@"
        } else {
            ""
        };
        write!(f, "http://{hidden}{}", self.place())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    /// Reads `[http://][USER[:PASS]@]HOST[:PORT][/]`.
    fn from_str(text: &str) -> Result<Proxy, ProxyError> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(ProxyError::Scheme),
            None => text,
        };
        // A password may hold an @ that nobody encoded; a host never does.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(ProxyError::Path);
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !rest.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let port = match port {
            None => PORT,
            Some(port) => port_of(port).ok_or(ProxyError::Port)?,
        };
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) => inner
                .parse::<std::net::Ipv6Addr>()
                .ok()
                .map(|ip| ip.to_string()),
            None => Some(host.to_owned()).filter(|host| is_host(host)),
        };
        let credentials = credentials.map(decoded).transpose()?;
        Ok(Proxy {
            host: host.ok_or(ProxyError::Host)?,
            port,
            credentials,
        })
    }
}

/// A port from 1 to 65535, in digits alone.
fn port_of(text: &str) -> Option<u16> {
    let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|port| *port != 0)
}

/// Whether it is an IPv4 address or a host name, as far as its characters tell. No name ends in a number: what does is an
/// address with a mistake in it.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 253
        && text.split('.').all(is_label)
        && (!is_number || text.parse::<Ipv4Addr>().is_ok())
}

/// `NAME:PASSWORD` of a URL; the password may be missing.
fn decoded(text: &str) -> Result<String, ProxyError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        bytes.push(match byte {
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => {
                    u8::try_from(high * 16 + low).map_err(|_| ProxyError::Credentials)?
                }
                _ => return Err(ProxyError::Credentials),
            },
            plain => plain,
        });
    }
    let plain = String::from_utf8(bytes).map_err(|_| ProxyError::Credentials)?;
    if plain.chars().any(char::is_control) {
        return Err(ProxyError::Credentials);
    }
    Ok(if text.contains(':') {
        plain
    } else {
        plain + ":"
    })
}

/// How connections out are made: through which proxy, and which of them past it.
#[derive(Debug, Clone, Default)]
pub struct Way {
    proxy: Option<Proxy>,
    past: Vec<Past>,
    left_out: Vec<String>,
}

/// Places that are reached past a proxy: an entry of `transport.no_proxy`, or of `no_proxy` in the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    what: Places,
    port: Option<u16>,
}

/// The text means no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a name (with all below it), an address or a prefix, each perhaps with :PORT, or \"*\""
)]
pub struct NoPlace;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Places {
    All,
    Within(IpNet),
    /// A host and every name below it, in small letters.
    Named(String),
}

impl Way {
    /// What a choice comes to, with the places that the configuration names as reached past the proxy; `variable` reads the
    /// environment. `no_proxy` counts for a proxy of the configuration, too.
    ///
    /// # Errors
    /// The environment names a proxy that cannot be used: the variable and why.
    pub fn of(
        choice: &Choice,
        past: &[Past],
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Way, (String, ProxyError)> {
        let either = |name: &str| {
            let set = |name: &str| variable(name).filter(|value| !value.is_empty());
            let upper = name.to_ascii_uppercase();
            let small = set(name).map(|value| (name.to_owned(), value));
            small.or_else(|| set(&upper).map(|value| (upper, value)))
        };
        let proxy = match choice {
            Choice::None => return Ok(Way::default()),
            Choice::Url(proxy) => Some(proxy.clone()),
            Choice::Env => match VARIABLES.iter().find_map(|name| either(name)) {
                Some((name, url)) => Some(url.parse().map_err(|why| (name, why))?),
                None => None,
            },
        };
        let list = either("no_proxy").map(|(_, list)| list).unwrap_or_default();
        let entries = list.split([',', ' ']).map(str::trim);
        let (mut past, mut left_out) = (past.to_vec(), Vec::new());
        for (read, entry) in entries.filter(|entry| !entry.is_empty()).enumerate() {
            match entry.parse() {
                Ok(place) if read < EXEMPT => past.push(place),
                _ => left_out.push(entry.to_owned()),
            }
        }
        Ok(Way {
            proxy,
            past,
            left_out,
        })
    }

    /// Entries of `no_proxy` in the environment that mean no place here, or stand behind the first 256.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The proxy, if there is one.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// The proxy that leads to a name or an address at this port; none where it is reached directly.
    pub fn to(&self, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = self.proxy.as_ref()?;
        let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let near = match ip {
            Some(ip) => ip.is_loopback() || is_link_local(ip),
            None => host == "localhost" || host.ends_with(".localhost"),
        };
        let past = near || self.past.iter().any(|past| past.covers(&host, ip, port));
        (!past).then_some(proxy)
    }
}

impl FromStr for Past {
    type Err = NoPlace;

    /// Reads `*`, a name, an address or a prefix, the last three perhaps with a port.
    fn from_str(entry: &str) -> Result<Past, NoPlace> {
        if entry == "*" {
            return Ok(Past {
                what: Places::All,
                port: None,
            });
        }
        let net = |text: &str| {
            let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
            let bare = inner.unwrap_or(text);
            let one = || bare.parse::<IpAddr>().ok().map(IpNet::from);
            bare.parse::<IpNet>().ok().or_else(one)
        };
        if let Some(net) = net(entry) {
            let what = Places::Within(net.trunc());
            return Ok(Past { what, port: None });
        }
        let (place, port) = match entry.rsplit_once(':') {
            Some((place, port)) => (place, Some(port_of(port).ok_or(NoPlace)?)),
            None => (entry, None),
        };
        let what = match net(place) {
            Some(net) => Places::Within(net.trunc()),
            None => {
                let name = place.trim_start_matches("*.").trim_start_matches('.');
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                let named = is_host(&name).then_some(Places::Named(name));
                named.ok_or(NoPlace)?
            }
        };
        Ok(Past { what, port })
    }
}

impl fmt::Display for Past {
    /// Writes what is read as the same places.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.what, self.port) {
            (Places::All, _) => f.write_str("*"),
            (Places::Within(net), Some(port)) => write!(f, "[{net}]:{port}"),
            (Places::Within(net), None) => write!(f, "{net}"),
            (Places::Named(name), Some(port)) => write!(f, "{name}:{port}"),
            (Places::Named(name), None) => f.write_str(name),
        }
    }
}

impl Past {
    fn covers(&self, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
        let place = match &self.what {
            Places::All => true,
            Places::Within(net) => ip.is_some_and(|ip| net.contains(&ip)),
            Places::Named(name) => {
                let below = host.strip_suffix(name.as_str());
                below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
            }
        };
        place && self.port.is_none_or(|only| only == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxy(text: &str) -> Result<Proxy, ProxyError> {
        text.parse()
    }

    /// The way of an environment.
    fn way(choice: &str, env: &[(&str, &str)]) -> Result<Way, (String, ProxyError)> {
        let variable = |name: &str| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Way::of(&choice.parse().unwrap(), &[], &variable)
    }

    #[test]
    fn a_url_names_host_port_and_credentials() {
        for (text, host, port, credentials) in [
            ("http://proxy.corp:3128", "proxy.corp", 3128, None),
            ("HTTP://10.0.0.1:8080/", "10.0.0.1", 8080, None),
            ("proxy:3128", "proxy", 3128, None),
            ("http://[2001:db8::1]:3128", "2001:db8::1", 3128, None),
            ("http://[2001:db8::1]", "2001:db8::1", 80, None),
            ("http://a:b%40c@p:1", "p", 1, Some("a:b@c")),
            ("http://a:b@c@p:1", "p", 1, Some("a:b@c")),
            ("http://alone@p:1", "p", 1, Some("alone:")),
        ] {
            let read = proxy(text).unwrap();
            assert_eq!((read.host(), read.port()), (host, port), "{text}");
            assert_eq!(read.credentials(), credentials, "{text}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_being_quoted() {
        for (text, why) in [
            ("https://u:secret@p:1", ProxyError::Scheme),
            ("socks5://p:1", ProxyError::Scheme),
            ("http://u:secret@:1", ProxyError::Host),
            ("http://", ProxyError::Host),
            ("http://a b:1", ProxyError::Host),
            ("http://[10.0.0.1]:1", ProxyError::Host),
            ("http://2001:db8::1", ProxyError::Host),
            ("http://10.0.0.300:1", ProxyError::Host),
            ("http://p:0", ProxyError::Port),
            ("http://p:+1", ProxyError::Port),
            ("http://p:65536", ProxyError::Port),
            ("http://p:1/path", ProxyError::Path),
            ("http://u:secret%4@p:1", ProxyError::Credentials),
            ("http://u:sec%0aret@p:1", ProxyError::Credentials),
        ] {
            assert_eq!(proxy(text), Err(why), "{text}");
            assert!(!why.to_string().contains("secret"));
        }
    }

    #[test]
    fn nobody_is_shown_a_name_or_a_password() {
        let choice: Choice = "http://alice:secret@p:3128".parse().unwrap();
        assert_eq!(choice.to_string(), "http://***@p:3128");
        let way = way("http://alice:secret@p:3128", &[]).unwrap();
        for shown in [format!("{choice:?}"), format!("{way:?}")] {
            assert!(
                !shown.contains("alice") && !shown.contains("secret"),
                "{shown}"
            );
        }
    }

    #[test]
    fn the_environment_is_asked_in_both_cases_and_only_when_told_to() {
        let found = |env: &[(&str, &str)]| way("env", env).unwrap().proxy().map(Proxy::place);
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("http_proxy", "http://p:1")]), None);
        assert_eq!(found(&[("https_proxy", "")]), None);
        let all = [
            ("ALL_PROXY", "http://d:4"),
            ("all_proxy", "http://c:3"),
            ("HTTPS_PROXY", "http://b:2"),
            ("https_proxy", "http://a:1"),
        ];
        for (from, want) in [(0, "a:1"), (1, "b:2"), (2, "c:3"), (3, "d:4")] {
            let some = &all[..all.len() - from];
            assert_eq!(found(some).as_deref(), Some(want));
        }
        let none = way("none", &[("https_proxy", "http://a:1")]).unwrap();
        assert!(none.proxy().is_none());
        let bad = way("env", &[("HTTPS_PROXY", "socks5://u:p@h:1")]).unwrap_err();
        assert_eq!(bad, ("HTTPS_PROXY".to_owned(), ProxyError::Scheme));
    }

    #[test]
    fn this_machine_its_links_and_what_no_proxy_lists_are_reached_directly() {
        let env = [(
            "no_proxy",
            "corp.example, .lab.example 10.0.0.0/8,192.0.2.7,[2001:db8::7],host.example:8443",
        )];
        let way = way("http://p:1", &env).unwrap();
        assert_eq!(way.left_out(), [""; 0]);
        for (host, port) in [
            ("127.0.0.1", 443),
            ("::1", 443),
            ("localhost", 443),
            ("169.254.3.4", 443),
            ("fe80::1", 443),
            ("corp.example", 443),
            ("vpn.CORP.example.", 443),
            ("lab.example", 443),
            ("x.lab.example", 443),
            ("10.9.9.9", 443),
            ("::ffff:10.9.9.9", 443),
            ("192.0.2.7", 1),
            ("2001:db8::7", 443),
            ("host.example", 8443),
        ] {
            assert!(way.to(host, port).is_none(), "{host}");
        }
        for (host, port) in [
            ("vpn.example", 443),
            ("notcorp.example", 443),
            ("192.168.1.1", 443),
            ("192.0.2.8", 443),
            ("2001:db8::8", 443),
            ("host.example", 443),
        ] {
            assert!(way.to(host, port).is_some(), "{host}");
        }
        let all = super::Way::of(&"http://p:1".parse().unwrap(), &[], &|name| {
            (name == "NO_PROXY").then(|| "*".to_owned())
        });
        assert!(all.unwrap().to("vpn.example", 443).is_none());
    }

    #[test]
    fn an_entry_that_means_no_place_is_told_and_the_others_count() {
        let bad = [
            ":",
            "bad/33",
            "192.168.*",
            "10.",
            "10.0.0.300",
            "a.example:0",
            "a.example:+1",
            "a.example:65536",
            "<local>",
            "http://a.example",
            "*.*",
            "[::1",
        ];
        for entry in bad {
            assert_eq!(entry.parse::<Past>(), Err(NoPlace), "{entry}");
        }
        let list = format!("{},corp.example", bad.join(","));
        let told = way("http://p:1", &[("no_proxy", &list)]).unwrap();
        assert_eq!(told.left_out(), bad);
        assert!(told.to("corp.example", 443).is_none());
        // What stands behind the first 256 is not read, and told as well.
        let many: Vec<String> = (0..258).map(|n| format!("h{n}.example")).collect();
        let told = way("http://p:1", &[("no_proxy", &many.join(" "))]).unwrap();
        assert_eq!(told.left_out(), &many[256..]);
    }

    #[test]
    fn places_of_the_configuration_count_beside_those_of_the_environment() {
        let past: Vec<Past> = ["vpn.example", "192.0.2.0/24"]
            .map(|e| e.parse().unwrap())
            .into();
        let variable = |name: &str| (name == "no_proxy").then(|| "corp.example".to_owned());
        let way = Way::of(&"http://p:1".parse().unwrap(), &past, &variable).unwrap();
        for host in ["vpn.example", "192.0.2.9", "corp.example"] {
            assert!(way.to(host, 443).is_none(), "{host}");
        }
        assert!(way.to("other.example", 443).is_some());
    }

    #[test]
    fn a_place_is_written_as_it_is_read() {
        for (entry, written) in [
            ("*", "*"),
            (".Lab.example.", "lab.example"),
            ("*.lab.example:8443", "lab.example:8443"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7:80", "[192.0.2.7/32]:80"),
            ("[2001:db8::7]:443", "[2001:db8::7/128]:443"),
        ] {
            let read: Past = entry.parse().unwrap();
            assert_eq!(read.to_string(), written, "{entry}");
            assert_eq!(written.parse(), Ok(read), "{entry}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(url in ".{0,60}", list in ".{0,60}", host in ".{0,30}") {
            let _ = proxy(&url);
            let variable = |name: &str| (name == "no_proxy").then(|| list.clone());
            let way = Way::of(&"http://p:1".parse().unwrap(), &[], &variable).unwrap();
            let _ = way.to(&host, 443);
            for past in way.past {
                prop_assert_eq!(past.to_string().parse(), Ok(past));
            }
        }
    }
}
