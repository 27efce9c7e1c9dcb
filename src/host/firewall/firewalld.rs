//! firewalld: our links in a zone, at run time only, by `firewall-cmd`, which the [`helper`] runs.
//!
//! One call takes 0.15 s and is made only when a subnet comes or goes and after firewalld was reloaded, so a D-Bus client
//! of our own would be twenty libraries for nothing. Whether our links have their zone is read from the kernel.

use std::collections::BTreeSet;

use super::chains::Chain;
use super::{Firewalls, has};
use crate::helper;
use crate::host::failure;
use crate::host::nft::run::nft;
use crate::model::host::Failure;

/// Name of firewalld's table.
const TABLE: &str = "firewalld";
/// Name of the chain of firewalld that tells zones apart.
const ZONES: &str = "filter_INPUT_ZONES";
/// The zone of an administrator who wants our links to have one of their own.
const OWN_ZONE: &str = "byway";
/// The zone that is always there and accepts.
const TRUSTED: &str = "trusted";

/// Whether the chain sends a link, `+` at its end for any ending, into some zone: where the administrator put it into
/// one, it stays there.
fn has_zone(zones: &str, link: &str) -> bool {
    let name = link
        .strip_suffix('+')
        .map_or_else(|| link.to_owned(), |prefix| format!("{prefix}*"));
    zones.contains(&format!("iifname \"{name}\" "))
}

/// Brings our links in line with `links`.
pub(super) async fn follow(
    firewalls: &mut Firewalls,
    chains: &[Chain],
    links: &BTreeSet<String>,
) -> Vec<Failure> {
    let runs = has(chains, "inet", TABLE, ZONES);
    let mut failures = take_out(firewalls, runs, links).await;
    if !runs || links.is_empty() {
        return failures;
    }
    let listed = nft(
        "list firewalld's zones",
        &["list", "chain", "inet", TABLE, ZONES],
        &[],
        &firewalls.own,
    )
    .await;
    let listed = match listed {
        Ok(listed) => String::from_utf8_lossy(&listed).into_owned(),
        // It is being reloaded: the next look comes with the events of that.
        Err(error) => {
            tracing::debug!(%error, "firewalld's zones cannot be read now");
            return failures;
        }
    };
    let missing: Vec<&String> = links
        .iter()
        .filter(|link| !has_zone(&listed, link))
        .collect();
    if missing.is_empty() {
        return failures;
    }
    if let Err(why) = add(firewalls, &missing).await {
        failures.push(failure("put our links into a zone of firewalld", why));
    }
    failures
}

/// Takes links that are no longer ours out of the zones they were put into.
async fn take_out(firewalls: &mut Firewalls, runs: bool, links: &BTreeSet<String>) -> Vec<Failure> {
    let mut failures = Vec::new();
    let gone: Vec<(String, String)> = firewalls
        .journal
        .zones()
        .clone()
        .into_iter()
        .filter(|(link, _)| !links.contains(link))
        .collect();
    for (link, zone) in gone {
        let removed = match (runs, firewalls.in_time()) {
            (true, Err(why)) => Err(why),
            (true, Ok(())) => helper::zone(&zone, vec![link.clone()], false)
                .await
                .map_err(|error| error.to_string()),
            // What it had at run time went with it.
            (false, _) => Ok(()),
        };
        let forgotten = removed.and_then(|_| {
            firewalls
                .journal
                .change(|data| drop(data.zones.remove(&link)))
                .map_err(|error| format!("{error:#}"))
        });
        if let Err(why) = forgotten {
            failures.push(failure(
                format!("take {link} out of firewalld's zone {zone}"),
                why,
            ));
        }
    }
    failures
}

async fn add(firewalls: &mut Firewalls, links: &[&String]) -> Result<(), String> {
    let zones = helper::zones().await.map_err(|error| error.to_string())?;
    let zone = if zones.iter().any(|zone| zone == OWN_ZONE) {
        OWN_ZONE
    } else {
        TRUSTED
    };
    let note = firewalls.journal.change(|data| {
        data.zones
            .extend(links.iter().map(|link| ((*link).clone(), zone.to_owned())))
    });
    note.map_err(|error| format!("{error:#}"))?;
    let names = links.iter().map(|link| (*link).clone()).collect();
    helper::zone(zone, names, true)
        .await
        .map_err(|error| error.to_string())?;
    firewalls.made = true;
    tracing::info!(
        zone,
        links = links.len(),
        "links of ours are in a zone of firewalld"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_a_zone_by_its_whole_name() {
        let zones = "\t\tiifname \"bwv*\" goto filter_IN_trusted\n\t\tiifname \"bw-lab2\" goto filter_IN_public\n";
        assert!(has_zone(zones, "bwv+") && has_zone(zones, "bw-lab2"));
        assert!(!has_zone(zones, "bw-lab") && !has_zone(zones, "bwv"));
    }
}
