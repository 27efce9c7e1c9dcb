//! `ports` of a service, in their short and their long form.

use std::net::IpAddr;

use super::file::text;
use super::variables::Variables;
use super::yaml::{Node, Value, at};
use crate::api::types::ImportMap;
use crate::cli::value::{Checked, shown};
use crate::model::host::Proto;
use crate::model::ports::PortRange;

/// Keys of the long form that change nothing for byway.
const PASSED: [&str; 3] = ["name", "mode", "app_protocol"];

/// One entry of `ports`. Whether the engine publishes it by itself is `by_engine`.
pub(super) fn port(node: &Node, variables: &Variables, by_engine: bool) -> Checked<ImportMap> {
    let map = match &node.value {
        Value::Map(_) => long(node, variables)?,
        _ => short(node, variables)?,
    };
    if map.ports.count() != map.target_ports.count() {
        let (here, there) = (map.ports.count(), map.target_ports.count());
        let message = format!(
            "{here} ports of this machine and {there} of the service: as many of both are mapped"
        );
        return Err(at(node.line, message));
    }
    Ok(ImportMap { by_engine, ..map })
}

fn short(node: &Node, variables: &Variables) -> Checked<ImportMap> {
    let (written, plain) = node.scalar("a port")?;
    if plain && is_base_60(written) {
        let message = format!(
            "some versions of compose read {written} as one number: write it in quotes, \"{written}\""
        );
        return Err(at(node.line, message));
    }
    let whole = text(node, "a port", variables)?;
    let (rest, proto) = whole.rsplit_once('/').unwrap_or((&whole, "tcp"));
    let (rest, target) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (listen, published) = match rest.rsplit_once(':') {
        Some((listen, published)) => (Some(address(node, listen)?), published),
        None => (None, rest),
    };
    let target_ports = range(node, target)?;
    if published.is_empty() {
        return Err(without(node, target_ports));
    }
    Ok(ImportMap {
        proto: protocol(node, proto)?,
        listen,
        ports: range(node, published)?,
        target_ports,
        by_engine: false,
    })
}

fn long(node: &Node, variables: &Variables) -> Checked<ImportMap> {
    let (mut target, mut published, mut listen, mut proto) = (None, None, None, Proto::Tcp);
    for entry in node.entries("a port")? {
        let value = || text(&entry.value, &entry.key, variables);
        match entry.key.as_str() {
            "target" => target = Some(range(&entry.value, &value()?)?),
            "published" => published = Some(range(&entry.value, &value()?)?),
            "host_ip" => listen = Some(address(&entry.value, &value()?)?),
            "protocol" => proto = protocol(&entry.value, &value()?)?,
            key if PASSED.contains(&key) || key.starts_with("x-") => {}
            key => {
                return Err(at(
                    entry.line,
                    format!("{} is no key of a port", shown(key)),
                ));
            }
        }
    }
    let target_ports = target.ok_or_else(|| at(node.line, "a port without its target"))?;
    Ok(ImportMap {
        proto,
        listen,
        ports: published.ok_or_else(|| without(node, target_ports))?,
        target_ports,
        by_engine: false,
    })
}

/// Digits with colons between them: YAML 1.1 has numbers to the base of 60, and compose before version 2 reads them.
fn is_base_60(written: &str) -> bool {
    let mut parts = written.split(':');
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let below_60 = |part: &str| digits(part) && part.parse::<u32>().is_ok_and(|n| n < 60);
    parts.next().is_some_and(digits) && written.contains(':') && parts.all(below_60)
}

fn without(node: &Node, target: PortRange) -> crate::api::types::Error {
    let message = format!(
        "port {target} has no port of this machine: \"{target}:{target}\" names one, expose says that there is none"
    );
    at(node.line, message)
}

fn range(node: &Node, text: &str) -> Checked<PortRange> {
    text.parse().map_err(|e| at(node.line, e))
}

fn address(node: &Node, text: &str) -> Checked<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let found = inner.unwrap_or(text).parse();
    found.map_err(|_| at(node.line, format!("{} is no address", shown(text))))
}

fn protocol(node: &Node, text: &str) -> Checked<Proto> {
    match text {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        _ => {
            let message = format!("{} is not mapped: tcp and udp are", shown(text));
            Err(at(node.line, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn of(text: &str) -> Checked<String> {
        let whole = yaml::read(text).unwrap();
        let node = &whole.items("it").unwrap()[0];
        port(node, &Variables::default(), false).map(|m| {
            let listen = m.listen.map_or("*".to_owned(), |l| l.to_string());
            format!("{} {listen} {} {}", m.proto, m.ports, m.target_ports)
        })
    }

    #[test]
    fn ports_are_read_in_both_forms() {
        for (text, map) in [
            ("- \"8080:80\"", "tcp * 8080 80"),
            ("- 8080:80", "tcp * 8080 80"),
            ("- \"22:22\"", "tcp * 22 22"),
            ("- 5300:53/udp", "udp * 5300 53"),
            ("- 9000-9010:8000-8010", "tcp * 9000-9010 8000-8010"),
            ("- 127.0.0.1:8001:8001", "tcp 127.0.0.1 8001 8001"),
            ("- \"[::1]:8001:80\"", "tcp ::1 8001 80"),
            ("- \"::1:8001:80\"", "tcp ::1 8001 80"),
            ("- {target: 80, published: 8080}", "tcp * 8080 80"),
            (
                "- {target: 53, published: \"5300\", protocol: udp, host_ip: 192.0.2.1, mode: host}",
                "udp 192.0.2.1 5300 53",
            ),
        ] {
            assert_eq!(of(text).as_deref(), Ok(map), "{text}");
        }
    }

    #[test]
    fn ports_that_mean_no_map_are_refused() {
        for (text, says) in [
            ("- 22:22", "write it in quotes, \"22:22\""),
            ("- 3000", "\"3000:3000\" names one"),
            ("- \"127.0.0.1::80\"", "has no port of this machine"),
            ("- {target: 80}", "has no port of this machine"),
            ("- {published: 80}", "without its target"),
            ("- 8000-8010:80", "11 ports of this machine and 1 of"),
            ("- 8080:80/sctp", "\"sctp\" is not mapped"),
            ("- 8080:http", "not a port"),
            ("- 0:80", "not a port"),
            ("- example.org:8080:80", "\"example.org\" is no address"),
            (
                "- {target: 80, published: 81, hostip: 1}",
                "\"hostip\" is no key of a port",
            ),
            ("- [1]", "a port is a list"),
            ("- ", "a port is nothing"),
        ] {
            let message = of(text).unwrap_err().message;
            assert!(message.starts_with("line 1: "), "{text}: {message}");
            assert!(message.contains(says), "{text}: {message}");
        }
    }
}
