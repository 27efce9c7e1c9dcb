//! openresolv: a file of each link, from which it writes what a resolver on this machine asks whom.
//!
//! Our links are private to it: their servers are asked for their domains alone, and only where a resolver that can do that
//! stands behind it, such as dnsmasq or unbound; `resolv.conf` never gets the servers. It gets the domains for its search list,
//! which openresolv makes of every domain. Its files outlive the links, so each is in a journal before it is made. Debian's
//! program of the same name knows no private links and is told nothing.

use super::bus::Refusal;
use super::wanted::LinkNames;
use crate::host::nft::run::{OwnRuns, complaint, program};

const PROGRAM: &str = "resolvconf";

/// Reverse zones of a subnet that it is told of, one of each family; more are left out, all of them. Each is tried behind a short
/// name that is nowhere else.
const MOST_REVERSE: usize = 2;

async fn run(args: &[&str], input: &str) -> Result<Vec<u8>, Refusal> {
    match program(PROGRAM, args, input.as_bytes(), &OwnRuns::default()).await {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => {
            let why = complaint(&output);
            // Its scripts have no better word for it.
            if why.contains("ermission denied") {
                Err(Refusal::Denied(why))
            } else {
                Err(Refusal::Failed(why))
            }
        }
        Err(error) => Err(Refusal::Failed(format!("run {PROGRAM}: {error}"))),
    }
}

/// Whether it is on this machine, and no other program of that name.
pub(super) async fn is_here() -> bool {
    let said = run(&["--version"], "").await;
    said.is_ok_and(|said| said.starts_with(b"openresolv"))
}

/// Has it ask our servers for our domains.
///
/// # Errors
/// What it complained of.
pub(super) async fn set(names: &LinkNames) -> Result<(), Refusal> {
    let domains = match names.domains.as_slice() {
        [zone, reverse @ ..] if reverse.len() > MOST_REVERSE => std::slice::from_ref(zone),
        all => all,
    };
    let mut text = format!("search {}\n", domains.join(" "));
    for server in &names.servers {
        text += &format!("nameserver {server}\n");
    }
    run(&["-p", "-a", &names.link], &text).await.map(drop)
}

/// Takes a link's file away; one that is not there is no error.
///
/// # Errors
/// What it complained of.
pub(super) async fn remove(link: &str) -> Result<(), Refusal> {
    run(&["-f", "-d", link], "").await.map(drop)
}
