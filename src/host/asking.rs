//! Questions for names out of a workload's namespace, brought to our resolver whatever its `resolv.conf` says.
//!
//! Docker answers names by a server of its own inside the container, which sends what it does not know to the host's servers:
//! out of the container's namespace, by a way that does not pass us. A rule in that namespace turns these questions to the
//! gateway, which is our resolver. Packets to the loopback are left alone: there Docker's server is.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context, ensure};

use super::netns::inside;
use super::nft::run::{OwnRuns, nft};
use crate::model::host::{NetnsRef, is_link_name};

/// Name of the table for one link of a namespace.
fn table(link: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("byway_{}", link.chars().map(plain).collect::<String>())
}

/// The script that makes the table anew, whatever is there.
fn script(link: &str, own: &[IpAddr], gateways: &[IpAddr]) -> String {
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
    format!(
        "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n  chain out {{\n    type nat hook output priority -110; policy accept;\n{out}  }}\n  chain back {{\n    type nat hook postrouting priority 90; policy accept;\n{back}  }}\n}}\n"
    )
}

/// Turns what the namespace asks by that link to the gateways; `own` are the workload's addresses there.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not take the rules.
pub async fn turn(
    netns: &NetnsRef,
    link: &str,
    own: &[IpAddr],
    gateways: &[IpAddr],
) -> anyhow::Result<()> {
    ensure!(is_link_name(link), "{link:?} is no name of a link");
    let script = script(link, own, gateways);
    run(netns, "turn questions for names to us", script).await
}

/// Leaves the questions to themselves again. It is no error where that is so already, or the namespace is gone.
///
/// # Errors
/// When the kernel does not remove the rules.
pub async fn leave(netns: &NetnsRef, link: &str) -> anyhow::Result<()> {
    if !matches!(super::netns::exists(netns), Ok(true)) {
        return Ok(());
    }
    let table = table(link);
    // Making it first lets the removal succeed whatever is there.
    let script = format!("table inet {table}\ndelete table inet {table}\n");
    run(netns, "leave questions for names alone", script).await
}

async fn run(netns: &NetnsRef, what: &'static str, script: String) -> anyhow::Result<()> {
    let (done, _) = inside(netns, None, move || async move {
        nft(what, &["-f", "-"], script.as_bytes(), &OwnRuns::default()).await
    })
    .await?;
    done.map(drop).context(what)
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
    }
}
