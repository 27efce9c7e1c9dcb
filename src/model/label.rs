//! Labels by which a container says what it wants of byway.

use std::net::IpAddr;

use super::host::Proto;
use super::ports::PortRange;

/// Label that names the workload in the place of the container's name.
pub const NAME: &str = "byway.name";
/// Label with port maps of the container, `udp/5300:53`, several with commas between them.
pub const MAP: &str = "byway.map";
/// Label that says how the workload is asked whether it is well ([`Check::of_label`](super::health::Check::of_label)).
pub const HEALTH: &str = "byway.health";

/// A port map as a label says it: its protocol, the address of the machine where one is named, the ports of the machine and
/// those of the container. So `udp/5300:53`, `tcp/192.0.2.1:8080:80` at one address, or with ranges of ports; none for any
/// other text.
pub fn map_of(text: &str) -> Option<(Proto, Option<IpAddr>, PortRange, PortRange)> {
    let (proto, rest) = text.split_once('/')?;
    let proto = match proto {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        _ => return None,
    };
    let (listen, target) = rest.rsplit_once(':')?;
    let target = target.parse().ok()?;
    let (at, port) = match listen.rsplit_once(':') {
        Some((at, port)) => {
            let at = at.trim_start_matches('[').trim_end_matches(']');
            (Some(at.parse().ok()?), port)
        }
        None => (None, listen),
    };
    Some((proto, at, port.parse().ok()?, target))
}

/// The label that somebody most likely meant by a text which says no port map, for a remedy: what is found of a protocol and of
/// ports in it. What is not found is made up.
pub fn likely_map(text: &str) -> String {
    let proto = if text.to_ascii_lowercase().contains("udp") {
        Proto::Udp
    } else {
        Proto::Tcp
    };
    let digits = text.split(|c: char| !c.is_ascii_digit());
    let mut ports = digits.filter_map(|part| part.parse::<u16>().ok().filter(|port| *port != 0));
    let listen = ports.next().unwrap_or(8080);
    let target = ports.next().unwrap_or(listen);
    format!("{proto}/{listen}:{target}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_made_of_what_the_label_said() {
        for (text, likely) in [
            ("8080:80", "tcp/8080:80"),
            ("udp:5300:53", "udp/5300:53"),
            ("5300:53/UDP", "udp/5300:53"),
            ("443", "tcp/443:443"),
            ("tcp/99999:80", "tcp/80:80"),
            ("sctp/", "tcp/8080:8080"),
            ("", "tcp/8080:8080"),
        ] {
            assert_eq!(likely_map(text), likely, "{text:?}");
            assert!(
                map_of(likely).is_some(),
                "{likely} is a label that is honoured"
            );
        }
    }

    #[test]
    fn a_label_says_a_port_map_or_is_refused() {
        let ports = |text: &str| text.parse::<PortRange>().unwrap();
        let dns = (Proto::Udp, None, ports("5300"), ports("53"));
        assert_eq!(map_of("udp/5300:53"), Some(dns));
        let range = (Proto::Udp, None, ports("5300-5309"), ports("53-62"));
        assert_eq!(map_of("udp/5300-5309:53-62"), Some(range));
        let at = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(
            map_of("tcp/192.0.2.1:8080:80"),
            Some((Proto::Tcp, at("192.0.2.1"), ports("8080"), ports("80")))
        );
        assert_eq!(
            map_of("tcp/[2001:db8::1]:8080:80"),
            Some((Proto::Tcp, at("2001:db8::1"), ports("8080"), ports("80")))
        );
        for wrong in [
            "",
            "5353:53",
            "sctp/1:1",
            "udp/0:53",
            "udp/53",
            "udp/x:53",
            "tcp/a:8080:80",
            "udp/53:70000",
        ] {
            assert_eq!(map_of(wrong), None, "{wrong}");
        }
    }
}
