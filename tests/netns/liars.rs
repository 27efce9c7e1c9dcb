//! A workload that lies about who it is: in ARP, in neighbour discovery, as a router, with addresses and rules of its own.

use anyhow::{Result, ensure};

use crate::ci;
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, snapshot, v4, v6};

pub const CASES: &[Case] = &[ci!(
    a_workload_that_claims_anothers_addresses_draws_none_of_its_packets
)];

/// Each workload has a link of its own, and the machine's neighbours on it are fixed. So what one says of another's
/// address is heard by the machine alone, and believed by nobody.
fn a_workload_that_claims_anothers_addresses_draws_none_of_its_packets(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (near, far) = (lab.workload("near")?, lab.workload("far")?);
    let (victim, liar) = (lab.workload("victim")?, lab.workload("liar")?);
    let victim_at = a.attach(&victim, "lab", "victim")?;
    a.attach(&near, "lab", "near")?;
    let liars_own = v4(&a.attach(&liar, "lab", "liar")?)?;
    b.attach(&far, "lab", "far")?;
    let own = [v4(&victim_at)?, v6(&victim_at)?];
    let gateways = addresses_of_gateways(&liar)?;
    for to in &own {
        near.reaches(to, SOON)?;
        far.reaches(to, SOON)?;
    }
    liar.ok(&[
        "ip",
        "address",
        "add",
        &format!("{}/32", own[0]),
        "dev",
        "byway0",
    ])?;
    liar.ok(&[
        "ip",
        "-6",
        "address",
        "add",
        &format!("{}/128", own[1]),
        "dev",
        "byway0",
        "nodad",
    ])?;
    let rules = format!(
        "table inet liar {{\nchain in {{\ntype filter hook prerouting priority -300; policy accept;\n\
         iifname byway0 ip daddr {} counter\niifname byway0 ip6 daddr {} counter\niifname byway0 ip daddr {liars_own} counter\n}}\n}}\n",
        own[0], own[1]
    );
    liar.ok(&["nft", &rules])?;
    let before = snapshot::of(a.ns())?;
    for (to, gateway) in own.iter().zip(&gateways) {
        let answered = std::thread::scope(|s| -> Result<Vec<u32>> {
            let lies = s.spawn(|| -> Result<()> {
                for claimed in [to, gateway] {
                    let answer = liar.socket(&["claim", "byway0", claimed])?;
                    ensure!(answer.code == 0, "{answer}");
                }
                let answer = liar.socket(&["advertise", "byway0", "fd00:bad::/32"])?;
                ensure!(answer.code == 0, "{answer}");
                Ok(())
            });
            let probes = [&near, &far]
                .into_iter()
                .map(|from| from.probe(to, 50, 40)?.answered())
                .collect();
            lies.join()
                .map_err(|_| anyhow::anyhow!("the liar panicked"))??;
            probes
        })?;
        ensure!(
            answered == [50, 50],
            "{to} answered {answered:?} of 50 while another claimed it"
        );
    }
    // The rules count what does come: the liar's own packets.
    near.reaches(&liars_own, SOON)?;
    let seen = liar.ok(&["nft", "list", "table", "inet", "liar"])?;
    ensure!(
        seen.matches("packets 0 bytes 0").count() == 2,
        "packets for another came to the liar: {seen}"
    );
    liar.ok(&["nft", "delete", "table", "inet", "liar"])?;
    before.assert_same(&snapshot::of(a.ns())?, "the machine after the lies")?;
    for to in &own {
        near.reaches(to, SOON)?;
    }
    Ok(())
}

/// Where a workload's packets go first: the next hops of its routes, IPv4 then IPv6.
fn addresses_of_gateways(of: &crate::lab::netns::Netns) -> Result<[String; 2]> {
    let hop = |family: &str| -> Result<String> {
        let routes = of.ok(&["ip", family, "route", "show", "dev", "byway0"])?;
        let words: Vec<&str> = routes.split_whitespace().collect();
        let via = words.iter().position(|w| *w == "via");
        via.and_then(|at| words.get(at + 1))
            .map(|hop| (*hop).to_owned())
            .ok_or_else(|| anyhow::anyhow!("no next hop in {routes}"))
    };
    Ok([hop("-4")?, hop("-6")?])
}
