//! Values as people type them, each checked at the edge with a message and a code of its own.
//!
//! All of these are exit code 2: nothing has been asked of the daemon yet.

use std::io::Read;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::api::types::{Cidr, Error, ErrorKind, Role};
use crate::config::multiaddr;
use crate::model::error::{Code, Hint};
use crate::model::host::HostPolicy;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::join::unwrapped;
use crate::model::zone::{MAX_NAME, MAX_SET, MAX_TTL, RecordData};

/// A value that was checked, or why it was not taken.
pub type Checked<T> = Result<T, Error>;

/// A wrong value.
pub fn wrong(code: Code, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, code, message)
}

/// What is echoed of a wrong value: enough to see it, not enough to fill a terminal.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// What of this machine a subnet reaches: `closed`, `open`, or a list of ports.
pub fn host_policy(text: &str) -> Checked<HostPolicy> {
    let list = "closed, open, or a list as tcp/22,udp/53,tcp/8000-8010 is expected";
    text.parse()
        .map_err(|e: crate::model::host::PolicyError| wrong(Code::Host, format!("{e}; {list}")))
}

/// One DNS label.
pub fn name(text: &str) -> Checked<Name> {
    text.parse()
        .map_err(|e: crate::model::id::IdError| wrong(Code::Name, e.to_string()))
}

/// A domain of DNS labels; `lab` alone means `lab.internal`.
pub fn domain(text: &str) -> Checked<String> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let full = if lower.contains('.') {
        lower
    } else {
        format!("{lower}.internal")
    };
    if crate::model::record::is_domain(&full) {
        Ok(full)
    } else {
        Err(wrong(
            Code::Name,
            format!(
                "{:?} is no domain: labels of a-z, 0-9 and '-', with dots between",
                text.chars().take(80).collect::<String>()
            ),
        ))
    }
}

/// A domain that a person who joins allows, as it is written.
pub fn allowed_domain(text: &str) -> Checked<String> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    if crate::model::record::is_domain(&lower) {
        Ok(lower)
    } else {
        Err(wrong(
            Code::Name,
            format!(
                "{} is no domain: labels of a-z, 0-9 and '-', with dots between",
                shown(text)
            ),
        ))
    }
}

/// A subnet by ID, name or prefix of an ID: one label in every case.
pub fn subnet(text: &str) -> Checked<String> {
    name(text).map(|n| n.to_string())
}

/// An object of the daemon that may be named in several ways (a member, a peer, a workload, an invite).
pub fn object(text: &str) -> Checked<String> {
    let fine = (1..=4096).contains(&text.len())
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if fine {
        Ok(text.to_owned())
    } else {
        Err(wrong(Code::Name, format!("{} names nothing", shown(text))))
    }
}

/// A whole number from `least` to `most`; `what` is what is counted.
pub fn number(text: &str, least: u32, most: u32, what: &str) -> Checked<u32> {
    let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|n| fine && (least..=most).contains(n))
        .ok_or_else(|| {
            wrong(
                Code::Number,
                format!(
                    "{} is not {what}: a whole number from {least} to {most}",
                    shown(text)
                ),
            )
        })
}

/// How many may join by an invite.
pub fn uses(text: &str) -> Checked<u32> {
    number(text, 1, u32::MAX, "a number of uses")
}

/// Length of a member's IPv4 block.
pub fn block4(text: &str) -> Checked<u8> {
    number(text, 1, 32, "the length of a block").map(|n| u8::try_from(n).unwrap_or(32))
}

/// How many probes `ping` sends.
pub fn probes(text: &str) -> Checked<u32> {
    number(text, 1, 100_000, "a number of probes")
}

/// `500ms`, `3s`, `5m`, `24h`, `7d`.
pub fn duration(text: &str) -> Checked<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let scale = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000u64),
        _ => None,
    };
    // A century: longer is a typing error, and stays far from every overflow.
    const MOST: u64 = 36_500 * 86_400_000;
    number
        .parse::<u64>()
        .ok()
        .zip(scale)
        .and_then(|(n, scale)| n.checked_mul(scale))
        .filter(|ms| *ms > 0 && *ms <= MOST)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            wrong(
                Code::Duration,
                format!(
                    "{} is not a duration such as 500ms 3s 5m 24h 7d",
                    shown(text)
                ),
            )
        })
}

/// Milliseconds of a duration, which [`duration`] keeps below a century.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn family<T>(text: &str, truncated: impl Fn(T) -> (T, bool), shape: &str) -> Checked<T>
where
    T: FromStr + std::fmt::Display + Copy,
{
    let net: T = text.parse().map_err(|_| {
        wrong(
            Code::Cidr,
            format!("{} is not a prefix such as {shape}", shown(text)),
        )
    })?;
    let (prefix, same) = truncated(net);
    if same {
        Ok(net)
    } else {
        Err(wrong(
            Code::Cidr,
            format!("{net} has bits set behind its prefix length; the prefix is {prefix}"),
        ))
    }
}

/// `auto`, `none` or an IPv4 prefix.
pub fn cidr4(text: &str) -> Checked<Cidr<Ipv4Net>> {
    match text {
        "auto" => Ok(Cidr::Auto),
        "none" => Ok(Cidr::None),
        _ => family(
            text,
            |n: Ipv4Net| (n.trunc(), n.trunc() == n),
            "10.77.0.0/16 (or auto, none)",
        )
        .map(Cidr::Given),
    }
}

/// `auto`, `none` or an IPv6 prefix.
pub fn cidr6(text: &str) -> Checked<Cidr<Ipv6Net>> {
    match text {
        "auto" => Ok(Cidr::Auto),
        "none" => Ok(Cidr::None),
        _ => family(
            text,
            |n: Ipv6Net| (n.trunc(), n.trunc() == n),
            "fd7a:31c0:9d2e::/48 (or auto, none)",
        )
        .map(Cidr::Given),
    }
}

/// A prefix of either family; an address alone is a prefix of full length.
pub fn prefix(text: &str) -> Checked<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(ip.into()),
        Err(_) => family(
            text,
            |n: IpNet| (n.trunc(), n.trunc() == n),
            "10.77.5.0/24 or an address",
        ),
    }
}

/// An address of either family.
pub fn address(text: &str) -> Checked<IpAddr> {
    text.parse().map_err(|_| {
        wrong(
            Code::Address,
            format!("{} is not an IP address", shown(text)),
        )
    })
}

/// `HOST`, `HOST:PORT` or a multiaddr, with or without `/p2p/ID`. What a host means the daemon works out.
pub fn multiaddr(text: &str) -> Checked<String> {
    let meant = multiaddr::expand(text, multiaddr::Peer::Optional)
        .map_err(|why| wrong(Code::Multiaddr, why))?;
    match meant.as_slice() {
        [one] => Ok(one.clone()),
        _ => Ok(text.to_owned()),
    }
}

/// A peer to connect to: where it is, or whatever names a peer.
pub fn peer(text: &str) -> Checked<String> {
    if text.starts_with('/') || text.contains(':') {
        multiaddr(text)
    } else {
        object(text)
    }
}

/// Bytes of the longest invite.
const MAX_INVITE: usize = 8192;
/// Characters of the ID of a subnet.
const ID_LENGTH: usize = 26;
/// What every invite begins with.
const INVITE_HEAD: &str = "byway1";

/// What `join` is given: an invite, or the ID of a subnet.
pub fn join_target(text: &str) -> Checked<String> {
    let text = unwrapped(text);
    if let Ok(id) = text.parse::<SubnetId>() {
        return Ok(id.to_string());
    }
    // Whether an invite is whole, forged or used is one answer of the daemon's, with one exit code.
    if text.starts_with(INVITE_HEAD) {
        return if text.len() <= MAX_INVITE && text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Ok(text)
        } else {
            let message =
                "this is no invite: it was cut or mistyped, or something stands beside it";
            Err(
                Error::new(ErrorKind::Refused, Code::InviteMalformed, message)
                    .hint(Hint::NewInvite),
            )
        };
    }
    if text.is_empty() {
        return Err(wrong(
            Code::Id,
            "expected the ID of a subnet or an invite (byway1…): there is nothing",
        ));
    }
    if text.len() > 2 * ID_LENGTH {
        let message = format!(
            "{} characters are no ID of a subnet, which has {ID_LENGTH}, and no invite, which begins with {INVITE_HEAD}: \
             was its beginning cut off?",
            text.chars().count()
        );
        return Err(wrong(Code::Id, message));
    }
    // Not echoed whole: it may be a secret with a wrong beginning.
    let why = match text.parse::<SubnetId>() {
        Err(e) => e.to_string(),
        Ok(_) => String::new(),
    };
    Err(wrong(
        Code::Id,
        format!("expected the ID of a subnet or an invite (byway1…): {why}"),
    ))
}

/// An invite by its ID or by itself, as it was sent.
pub fn invite(text: &str) -> Checked<String> {
    let whole = unwrapped(text);
    if whole.starts_with(INVITE_HEAD) {
        object(&whole)
    } else {
        object(text)
    }
}

/// A secret from a file, or from standard input for `-`.
pub fn secret(file: &str) -> Checked<String> {
    text_of(file, MAX_INVITE as u64)
}

/// A file of at most `most` bytes, `-` for standard input.
pub fn text_of(file: &str, most: u64) -> Checked<String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin()
            .lock()
            .take(most + 1)
            .read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|f| f.take(most + 1).read_to_string(&mut text)),
    };
    match read {
        Ok(n) if n as u64 > most => Err(wrong(
            Code::File,
            format!("{file} is larger than {most} bytes"),
        )),
        // Some editors put a byte order mark first; it is no part of any text.
        Ok(_) => Ok(text
            .strip_prefix('\u{feff}')
            .map(ToOwned::to_owned)
            .unwrap_or(text)),
        Err(e) => Err(wrong(Code::File, format!("read {file}: {e}"))),
    }
}

/// A port from 1 to 65535; ranges come later.
fn port(text: &str) -> Checked<u16> {
    if text.contains('-')
        && text
            .split('-')
            .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(wrong(
            Code::PortRange,
            format!(
                "{} is a range of ports: this version maps single ports",
                shown(text)
            ),
        ));
    }
    let fine = text.bytes().all(|b| b.is_ascii_digit());
    text.parse::<u16>()
        .ok()
        .filter(|p| fine && *p != 0)
        .ok_or_else(|| {
            wrong(
                Code::Port,
                format!("{} is not a port: 1 to 65535", shown(text)),
            )
        })
}

/// Host and port of `HOST:PORT`; an IPv6 address stands in brackets.
fn host_port<'a>(text: &'a str, shape: &str) -> Checked<(&'a str, u16)> {
    let (host, tail) = text
        .rsplit_once(':')
        .ok_or_else(|| wrong(Code::Port, format!("{} is not {shape}", shown(text))))?;
    let port = port(tail)?;
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner,
        None if host.contains(':') => {
            let message = format!(
                "{}: an IPv6 address stands in brackets, as in [::1]:80",
                shown(text)
            );
            return Err(wrong(Code::Address, message));
        }
        None => host,
    };
    Ok((host, port))
}

/// Where a map listens: an address and a port, or with a port alone every address of both families.
pub type Listen = (Option<IpAddr>, u16);

/// `ADDRESS:PORT`, `:PORT` or `PORT`.
pub fn listen(text: &str) -> Checked<Listen> {
    let bare = text.strip_prefix(':').unwrap_or(text);
    if !bare.contains(':') && bare.starts_with(|c: char| c.is_ascii_digit()) && !bare.contains('.')
    {
        return Ok((None, port(bare)?));
    }
    let (host, port) = host_port(
        text,
        "a port or ADDRESS:PORT, such as 8080, 127.0.0.1:8080 or [::1]:53",
    )?;
    Ok((Some(address(host)?), port))
}

/// What a map leads to: an address or name, and a port.
pub fn map_target(text: &str) -> Checked<(String, u16)> {
    let (host, port) = host_port(
        text,
        "NAME:PORT or ADDRESS:PORT, such as web:80 or 10.77.1.5:80",
    )?;
    if host.parse::<IpAddr>().is_ok() {
        Ok((host.to_owned(), port))
    } else {
        Ok((dns_name(host)?, port))
    }
}

/// A name with dots in it, lower case, without the last dot (RFC 1035, section 2.3.4; `_` for services).
pub fn dns_name(text: &str) -> Checked<String> {
    let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if lower.len() <= MAX_NAME && lower.split('.').all(label) {
        return Ok(lower);
    }
    if text.contains('*') {
        let message = format!(
            "{} has a wildcard, which is not answered here: add each name",
            shown(text)
        );
        return Err(wrong(Code::Name, message));
    }
    let message = format!(
        "{} is not a DNS name: labels of 1 to 63 characters of a-z, 0-9, '-' and '_', joined by dots, 253 in all",
        shown(text)
    );
    Err(wrong(Code::Name, message))
}

/// What is asked of the DNS: a name, or an address for its reverse name.
pub fn dns_question(text: &str) -> Checked<String> {
    if text.parse::<IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        dns_name(text)
    }
}

/// A record type.
pub fn record_type(text: &str) -> Checked<String> {
    const TYPES: [&str; 8] = ["A", "AAAA", "CNAME", "TXT", "SRV", "PTR", "SOA", "NS"];
    let upper = text.to_ascii_uppercase();
    if TYPES.contains(&upper.as_str()) {
        return Ok(upper);
    }
    Err(wrong(
        Code::Type,
        format!(
            "{} is not a record type known here: {}",
            shown(text),
            TYPES.join(", ")
        ),
    ))
}

/// Seconds, or a duration: at most what RFC 2181 (section 8) allows.
pub fn ttl(text: &str) -> Checked<u32> {
    let seconds = match text.parse::<u64>() {
        Ok(n) => n,
        Err(_) => duration(text)?.as_secs(),
    };
    u32::try_from(seconds)
        .ok()
        .filter(|s| *s <= MAX_TTL)
        .ok_or_else(|| {
            wrong(
                Code::Ttl,
                format!(
                    "{} is not a time to live: 0 to {MAX_TTL} seconds",
                    shown(text)
                ),
            )
        })
}

/// The text of a TXT record, told in as many strings as it takes.
pub fn txt(text: &str) -> Checked<RecordData> {
    let data = RecordData::Txt(text.to_owned());
    if data.size() <= MAX_SET {
        return Ok(data);
    }
    Err(wrong(
        Code::Txt,
        format!(
            "a text of {} bytes does not fit an answer, which holds {MAX_SET}",
            text.len()
        ),
    ))
}

/// `P W PORT TARGET` (RFC 2782).
pub fn srv(text: &str) -> Checked<RecordData> {
    let bad = || {
        wrong(
            Code::Srv,
            format!(
                "{} is not \"PRIORITY WEIGHT PORT TARGET\", as in \"0 5 80 web\"",
                shown(text)
            ),
        )
    };
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    let [priority, weight, port, target] = parts.as_slice() else {
        return Err(bad());
    };
    let number = |t: &str| t.parse::<u16>().map_err(|_| bad());
    Ok(RecordData::Srv {
        priority: number(priority)?,
        weight: number(weight)?,
        port: number(port)?,
        target: dns_name(target)?,
    })
}

/// `key=value`.
pub fn label(text: &str) -> Checked<(String, String)> {
    let bad = || {
        wrong(
            Code::Label,
            format!("{} is not a label such as site=berlin", shown(text)),
        )
    };
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    let fine = (1..=63).contains(&key.len()) && key.bytes().all(legal) && value.len() <= 255;
    if fine && !value.chars().any(char::is_control) {
        Ok((key.to_owned(), value.to_owned()))
    } else {
        Err(bad())
    }
}

/// A role that can be given: nobody is made owner.
pub fn role(text: &str) -> Checked<Role> {
    match text {
        "member" => Ok(Role::Member),
        "admin" => Ok(Role::Admin),
        _ => Err(wrong(
            Code::Role,
            format!(
                "{} is not a role that can be given: member, admin",
                shown(text)
            ),
        )),
    }
}

/// A hardware address of one interface: six pairs of hex digits, not a group address.
pub fn mac(text: &str) -> Checked<String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|b| {
            (b.len() == 2)
                .then(|| u8::from_str_radix(b, 16).ok())
                .flatten()
        })
        .collect();
    match bytes.as_deref() {
        Some(bytes @ [first, _, _, _, _, _])
            if first & 1 == 0 && bytes.iter().any(|b| *b != 0) && !text.contains('+') =>
        {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(wrong(
            Code::Mac,
            format!(
                "{} is not a hardware address such as 02:00:00:00:00:01",
                shown(text)
            ),
        )),
    }
}

/// Lines `ADDRESS PEER-ID`; empty lines and what follows `#` are skipped.
pub fn lease_lines(text: &str) -> Checked<Vec<(IpNet, PeerId)>> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let at = |why: String| wrong(Code::LeaseLine, format!("line {}: {why}", number + 1));
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [address, peer] = parts.as_slice() else {
            return Err(at(format!("{} is not ADDRESS PEER-ID", shown(line))));
        };
        let prefix = prefix(address).map_err(|e| at(e.message))?;
        let peer = peer
            .parse()
            .map_err(|e: crate::model::id::IdError| at(format!("{}: {e}", shown(peer))))?;
        entries.push((prefix, peer));
    }
    if entries.is_empty() {
        Err(wrong(
            Code::LeaseLine,
            "there is no line ADDRESS PEER-ID in it",
        ))
    } else {
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code<T: std::fmt::Debug>(result: Checked<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        error.code
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, ms) in [
            ("500ms", 500),
            ("3s", 3000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for text in [
            "",
            "5",
            "0s",
            "-3s",
            "3 s",
            "99999999999999999999d",
            "1000000d",
            "s",
            "3sec",
            "١s",
        ] {
            assert_eq!(code(duration(text)), "E-DURATION", "{text}");
        }
    }

    #[test]
    fn prefixes_have_no_bits_behind_their_length() {
        assert_eq!(prefix("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(prefix("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert_eq!(
            prefix("10.77.5.1/24").unwrap_err().message,
            "10.77.5.1/24 has bits set behind its prefix length; the prefix is 10.77.5.0/24"
        );
        for text in ["10.0.0.0/33", "10.0.0/8", "x", "", "fd00::/129"] {
            assert_eq!(code(prefix(text)), "E-CIDR");
        }
        assert_eq!(code(cidr4("fd00::/8")), "E-CIDR");
        assert_eq!(code(cidr6("10.0.0.0/8")), "E-CIDR");
        assert_eq!(cidr4("none"), Ok(Cidr::None));
    }

    #[test]
    fn ports_are_from_1_to_65535_and_single() {
        assert_eq!(
            listen("[::]:53").unwrap(),
            (Some("::".parse().unwrap()), 53)
        );
        assert_eq!(
            map_target("Web.lab:80").unwrap(),
            ("web.lab".to_owned(), 80)
        );
        assert_eq!(
            map_target("[fd00::1]:80").unwrap(),
            ("fd00::1".to_owned(), 80)
        );
        for text in [
            "0.0.0.0:0",
            "0.0.0.0:65536",
            "0.0.0.0:",
            "0.0.0.0:+1",
            "0.0.0.0",
            "web",
            "0.0.0.0:x",
        ] {
            assert_eq!(code(listen(text)), "E-PORT", "{text}");
        }
        assert_eq!(code(listen("0.0.0.0:80-90")), "E-PORT-RANGE");
        assert_eq!(code(map_target("web:80-90")), "E-PORT-RANGE");
        assert_eq!(code(listen("::1:80")), "E-ADDRESS");
        assert_eq!(code(listen("web:80")), "E-ADDRESS");
        assert_eq!(code(map_target("a/b:80")), "E-NAME");
    }

    #[test]
    fn a_join_target_is_an_id_or_an_invite() {
        let id = SubnetId([9; 16]).to_string();
        assert_eq!(join_target(&id.to_uppercase()), Ok(id.clone()));
        assert_eq!(
            join_target(&format!(" byway1{id}\n")),
            Ok(format!("byway1{id}"))
        );
        // What is wrong with an invite is the daemon's to say.
        assert_eq!(join_target("byway1").ok().as_deref(), Some("byway1"));
        for text in ["byway1abc\x1b[2J", "byway1abc (one use)"] {
            let error = join_target(text).unwrap_err();
            assert_eq!(
                (error.kind, error.code.as_str()),
                (ErrorKind::Refused, "E-INVITE-MALFORMED"),
                "{text}"
            );
        }
        // As it comes back from a mail program, an editor, a shell's quotes.
        for text in [
            "byway1ab\n  cdef\ngh\n",
            "> byway1abcd\r\n> efgh\r\n",
            "\u{feff}byway1abcdefgh",
            "\"byway1abcd efgh\"",
            "<byway1abcd=\r\nefgh>",
        ] {
            assert_eq!(
                join_target(text).as_deref(),
                Ok("byway1abcdefgh"),
                "{text:?}"
            );
        }
        assert_eq!(
            join_target(&format!("\u{feff}{}\n{}", &id[..9], &id[9..])),
            Ok(id.clone())
        );
        assert!(
            join_target(&"x".repeat(200))
                .unwrap_err()
                .message
                .contains("was its beginning cut off?")
        );
        for text in ["", "lab", &id[..25], &format!("{}u", &id[..25])] {
            assert_eq!(code(join_target(text)), "E-ID", "{text}");
        }
    }

    #[test]
    fn numbers_are_checked_in_words() {
        for text in ["many", "0", "-1", "+1", "", "4294967296", "1.5"] {
            let error = uses(text).unwrap_err();
            assert_eq!(
                (error.kind, error.code.as_str()),
                (ErrorKind::Usage, "E-NUMBER"),
                "{text}"
            );
            assert!(
                error
                    .message
                    .ends_with("is not a number of uses: a whole number from 1 to 4294967295"),
                "{error:?}"
            );
        }
        assert_eq!(
            (uses("4294967295"), block4("24"), probes("1")),
            (Ok(u32::MAX), Ok(24), Ok(1))
        );
        assert_eq!(
            (code(block4("33")), code(block4("abc")), code(probes("0"))),
            ("E-NUMBER".into(), "E-NUMBER".into(), "E-NUMBER".into())
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leases");
        std::fs::write(&file, format!("\u{feff}10.1.0.7 {}\r\n", PeerId([1; 32]))).unwrap();
        let text = text_of(&file.display().to_string(), 1000).unwrap();
        assert_eq!(lease_lines(&text).unwrap().len(), 1);
    }

    #[test]
    fn lease_lines_name_the_wrong_one() {
        let id = PeerId([1; 32]);
        let text = format!("# table\n10.1.0.7 {id}\n\nfd00::/64 {id} # site\n");
        assert_eq!(lease_lines(&text).unwrap().len(), 2);
        assert!(
            lease_lines("10.1.0.7 x")
                .unwrap_err()
                .message
                .starts_with("line 1: \"x\": not a peer ID")
        );
        assert!(
            lease_lines(&format!("\n10.1.0 {id}"))
                .unwrap_err()
                .message
                .starts_with("line 2: ")
        );
        assert_eq!(code(lease_lines("")), "E-LEASE-LINE");
    }

    #[test]
    fn records_are_checked() {
        let parts = RecordData::Srv {
            priority: 0,
            weight: 5,
            port: 80,
            target: "web".into(),
        };
        assert_eq!(srv("0 5 80 web"), Ok(parts));
        assert_eq!(code(srv("0 5 80")), "E-SRV");
        assert_eq!(
            txt(&"x".repeat(4096)),
            Ok(RecordData::Txt("x".repeat(4096)))
        );
        assert_eq!(code(txt(&"x".repeat(65_000))), "E-TXT");
        assert_eq!(dns_name("_http._TCP.web."), Ok("_http._tcp.web".to_owned()));
        assert_eq!(code(dns_name("a..b")), "E-NAME");
        for wild in ["*", "*.x", "a.*.x"] {
            let refused = dns_name(wild).unwrap_err();
            assert!(
                refused.code == "E-NAME" && refused.message.contains("wildcard"),
                "{refused:?}"
            );
        }
        assert_eq!((ttl("60"), ttl("5m")), (Ok(60), Ok(300)));
        assert_eq!(code(ttl("4294967296")), "E-TTL");
        assert_eq!(mac("02:00:00:00:00:0A"), Ok("02:00:00:00:00:0a".to_owned()));
        assert_eq!(code(mac("01:00:00:00:00:01")), "E-MAC");
        assert_eq!(label("site=x=y"), Ok(("site".to_owned(), "x=y".to_owned())));
        assert_eq!(code(label("site")), "E-LABEL");
    }

    proptest! {
        #[test]
        fn no_value_panics(text in "\\PC{0,40}|[0-9a-f:.\\[\\]/-]{0,30}|byway1\\PC{0,40}") {
            let _ = (duration(&text), prefix(&text), cidr4(&text), cidr6(&text), listen(&text), map_target(&text));
            let _ = (join_target(&text), lease_lines(&text), srv(&text), ttl(&text), mac(&text), label(&text));
            let _ = (dns_question(&text), peer(&text), object(&text), subnet(&text), role(&text), record_type(&text));
        }
    }
}
