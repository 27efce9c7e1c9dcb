//! What the NAT before a member lets in, found out with the help of two others.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::drive::admit;
use crate::fast;
use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, until};

pub const CASES: &[Case] = &[fast!(
    each_kind_of_nat_is_told_by_two_members_in_ten_seconds
)];

/// How soon everybody knows, after the last one has joined.
const TEN: Duration = Duration::from_secs(10);

fn filtering(of: &Host) -> Result<Value> {
    // A symmetric NAT is a finding, and so the exit code is 9.
    of.byway(&["netcheck", "--json"])?.value()
}

fn each_kind_of_nat_is_told_by_two_members_in_ten_seconds(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (first, second) = (inet.host("a", 1)?, inet.host("b", 2)?);
    first.start()?;
    first.json(&["create", "lab"])?;
    second.start()?;
    admit(&first, &second, "member")?;
    let mut all: Vec<(Rc<Host>, &str)> = vec![
        (Rc::clone(&first), "endpoint-independent"),
        (second, "endpoint-independent"),
    ];
    let kinds = [
        ("full", Kind::full_cone(), "endpoint-independent"),
        ("addr", Kind::address_restricted(), "address-dependent"),
        (
            "port",
            Kind::port_restricted(),
            "address-and-port-dependent",
        ),
        ("symm", Kind::symmetric(), "address-and-port-dependent"),
    ];
    for (number, (name, kind, lets_in)) in (10..).zip(kinds) {
        let (_site, host) = inet.behind(name, number, &Uplink::behind(kind))?;
        host.start()?;
        admit(&first, &host, "member")?;
        all.push((host, lets_in));
    }
    let begun = Instant::now();
    for (host, lets_in) in &all {
        until(
            &format!("{} knows what is let in", host.name()),
            TEN,
            || {
                let nat = filtering(host)?;
                ensure!(nat["filtering"] == *lets_in, "{nat}");
                ensure!(nat["filtering_unknown"].is_null(), "{nat}");
                let status = &host.json(&["status"])?["nat"];
                for field in ["mapping", "filtering"] {
                    ensure!(status[field] == nat[field], "{status} and {nat}");
                }
                Ok(true)
            },
        )?;
        println!("  {} {lets_in} after {:?}", host.name(), begun.elapsed());
    }
    // The peers are told.
    for (host, lets_in) in all.iter().skip(1) {
        until("the peer knows it", TEN, || {
            let doctor = first.byway(&["doctor", host.name(), "--json"])?.value()?;
            let there = &doctor["peers"][0]["there"];
            ensure!(there["filtering"] == *lets_in, "{there}");
            Ok(true)
        })?;
    }
    // All this takes a few datagrams.
    let metrics = first.ok(&["metrics"])?;
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse::<u32>().ok())
    };
    let (tests, knocks) = (count("byway_nat_tests_total"), count("byway_knocks_total"));
    println!("  the first made {tests:?} tests and sent {knocks:?} knocks for others");
    ensure!(tests <= Some(2) && knocks <= Some(10), "{metrics}");
    Ok(())
}
