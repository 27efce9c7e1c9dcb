//! What is said in the DNS, and asked of it: domains, names, record types, times to live, the data of records.

use std::net::IpAddr;

use super::{Checked, duration, shown, wrong};
use crate::model::error::Code;
use crate::model::zone::{MAX_NAME, MAX_SET, MAX_TTL, RecordData};

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
            "{} has a `*` where a name of its own is wanted: only `dns add` and `dns rm` take one, as the first label (`*.apps`)",
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

/// The name of a record: the same, or one that begins with `*.` and stands for every name below the rest.
pub fn record_name(text: &str) -> Checked<String> {
    match text.strip_prefix("*.") {
        Some(rest) => {
            let rest = dns_name(rest)?;
            let wild = format!("*.{rest}");
            if wild.len() <= MAX_NAME {
                return Ok(wild);
            }
            dns_name(&wild)
        }
        None => dns_name(text),
    }
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

#[cfg(test)]
mod tests {
    use super::super::tests::code;
    use super::*;

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
        for wild in ["*", "a.*.x", "*x", "*.*.x"] {
            for read in [dns_name, record_name] {
                let refused = read(wild).unwrap_err();
                assert!(
                    refused.code == "E-NAME" && refused.message.contains("`*.apps`"),
                    "{refused:?}"
                );
            }
        }
        assert_eq!(code(dns_name("*.x")), "E-NAME");
        assert_eq!(record_name("*.Apps."), Ok("*.apps".to_owned()));
        let long = format!("*.{}{}", "a.".repeat(125), "bb");
        assert_eq!(code(record_name(&long)), "E-NAME");
        assert_eq!((ttl("60"), ttl("5m")), (Ok(60), Ok(300)));
        assert_eq!(code(ttl("4294967296")), "E-TTL");
    }
}
