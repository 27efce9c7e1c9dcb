//! Questions for names out of a workload's namespace, brought to our resolver whatever its `resolv.conf` says.
//!
//! The rules are written here and not by whoever asks: a script of nft may also read files.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::wire::Error;
use crate::model::host::is_link_name;

/// Where nft is looked for besides PATH, in which a service may lack the sbin directories.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];
/// Characters of a complaint of nft that are passed on.
const MAX_COMPLAINT: usize = 600;

/// Name of the table for one link of a namespace.
fn table(link: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("byway_{}", link.chars().map(plain).collect::<String>())
}

/// The script that makes the table anew, whatever is there; without a gateway it takes the table away.
pub(super) fn script(link: &str, own: &[IpAddr], gateways: &[IpAddr]) -> String {
    let table = table(link);
    let mut out = String::new();
    let mut back = String::new();
    for (family, loopback) in [("ip", "127.0.0.0/8"), ("ip6", "::1")] {
        let of = |all: &[IpAddr]| {
            all.iter()
                .copied()
                .find(|a| a.is_ipv4() == (family == "ip"))
        };
        let (Some(source), Some(gateway)) = (of(own), of(gateways)) else {
            continue;
        };
        for proto in ["udp", "tcp"] {
            // Infallible: it is written to a string.
            let _ = writeln!(
                out,
                "    {family} daddr != {loopback} {proto} dport 53 dnat {family} to {gateway}"
            );
            // The source was chosen for another way.
            let _ = writeln!(
                back,
                "    oifname \"{link}\" {family} daddr {gateway} {proto} dport 53 snat {family} to {source}"
            );
        }
    }
    // Making it first lets the removal succeed whatever is there.
    let anew = format!("table inet {table}\ndelete table inet {table}\n");
    if gateways.is_empty() {
        return anew;
    }
    format!(
        "{anew}table inet {table} {{\n  chain out {{\n    type nat hook output priority -110; policy accept;\n{out}  }}\n  chain back {{\n    type nat hook postrouting priority 90; policy accept;\n{back}  }}\n}}\n"
    )
}

/// Runs the script for a link in the namespace of the calling thread.
///
/// # Errors
/// The link has no link's name, nft is missing, or the kernel does not take the rules.
pub(super) fn turn(link: &str, own: &[IpAddr], gateways: &[IpAddr]) -> Result<(), Error> {
    if !is_link_name(link) {
        return Err(Error::Refused("no name of a link".to_owned()));
    }
    let text = script(link, own, gateways);
    let said = run(&text).map_err(|error| Error::Refused(format!("run nft: {error}")))?;
    match said {
        None => Ok(()),
        Some(complaint) => Err(Error::Refused(format!("nft: {complaint}"))),
    }
}

/// Runs nft; what it complains of, where it does.
fn run(text: &str) -> io::Result<Option<String>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in PLACES {
        let started = Command::new(place)
            .args(["-f", "-"])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                last = error;
                continue;
            }
            other => other?,
        };
        if let Some(mut stdin) = child.stdin.take() {
            // A process that ended early says why on its standard error: that is the better error.
            let _ = stdin.write_all(text.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().chars().take(MAX_COMPLAINT).collect();
        return Ok((!output.status.success()).then_some(said));
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_families_that_the_workload_has_are_turned_and_the_loopback_never_is() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let gateways = [ip("10.77.1.1"), ip("fd77::1")];
        let text = script("eth0", &[ip("10.77.1.5")], &gateways);
        assert!(
            text.contains("ip daddr != 127.0.0.0/8 udp dport 53 dnat ip to 10.77.1.1"),
            "{text}"
        );
        assert!(
            text.contains("oifname \"eth0\" ip daddr 10.77.1.1 tcp dport 53 snat ip to 10.77.1.5"),
            "{text}"
        );
        assert!(!text.contains("ip6"), "{text}");
        assert!(
            text.starts_with("table inet byway_eth0\ndelete table inet byway_eth0\n"),
            "{text}"
        );
        let both = script("bw.1", &[ip("10.77.1.5"), ip("fd77::5")], &gateways);
        assert!(
            both.contains("ip6 daddr != ::1 udp dport 53 dnat ip6 to fd77::1"),
            "{both}"
        );
        assert!(both.contains("table inet byway_bw_1 {"), "{both}");
        let gone = script("eth0", &[], &[]);
        assert_eq!(
            gone,
            "table inet byway_eth0\ndelete table inet byway_eth0\n"
        );
    }

    #[test]
    fn nothing_but_a_link_is_turned() {
        for link in [
            "",
            "a/b",
            "x\"; include \"/etc/shadow",
            "longer-than-15-bytes",
        ] {
            let turned = turn(link, &[], &[]);
            assert_eq!(turned, Err(Error::Refused("no name of a link".to_owned())));
        }
    }
}
