//! openresolv: a file of each link, from which it writes what a resolver on this machine asks whom.
//!
//! Our links are private to it: their servers are asked for their domains alone, and only where a resolver that can do that
//! stands behind it, such as dnsmasq or unbound; `resolv.conf` never gets the servers. It gets the domains for its search list,
//! which openresolv makes of every domain. Its files outlive the links, so each is in a journal before it is made. Debian's
//! program of the same name knows no private links and is told nothing.

use tokio::time::Instant;

use super::asked::Asked;
use super::bus::Refusal;
use super::wanted::LinkNames;
use super::{Outcome, SELDOM, SplitDns};
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
            // Its scripts have no better words for it: their own is about their lock, the shell's about their files.
            if why.contains("ermission denied") || why.contains("Cannot write to ") {
                Err(Refusal::Denied(why))
            } else {
                Err(Refusal::Failed(why))
            }
        }
        Err(error) => Err(Refusal::Failed(format!("run {PROGRAM}: {error}"))),
    }
}

/// Whether it is on this machine, and no other program of that name.
async fn is_here() -> bool {
    let said = run(&["--version"], "").await;
    said.is_ok_and(|said| said.starts_with(b"openresolv"))
}

/// Has it ask our servers for our domains.
///
/// # Errors
/// What it complained of.
async fn set(names: &LinkNames) -> Result<(), Refusal> {
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

impl SplitDns {
    /// Whether openresolv is here; looked for now and then.
    pub(super) async fn has_openresolv(&mut self) -> bool {
        match self.openresolv {
            Some((is_here, when)) if when.elapsed() < SELDOM => is_here,
            _ => {
                let is_here = is_here().await;
                self.openresolv = Some((is_here, Instant::now()));
                is_here
            }
        }
    }

    /// Brings openresolv in line, and tests what was changed.
    pub(super) async fn by_openresolv(
        &mut self,
        here: &[(i32, LinkNames)],
        asked: &Asked,
    ) -> Outcome {
        self.forget_resolved();
        let stay: Vec<&str> = here.iter().map(|(_, names)| names.link.as_str()).collect();
        if let Err(refusal) = self.take_back(&stay).await {
            return refusal.into();
        }
        for (_, names) in here {
            if self.given.get(&names.link) == Some(names) {
                continue;
            }
            self.tested = None;
            let is_new = !self.owed.links().contains(&names.link);
            let told = match self.owed.change(&names.link, true) {
                Ok(()) => set(names).await,
                Err(error) => Err(Refusal::Failed(format!("{error:#}"))),
            };
            if let Err(refusal) = told {
                let unheld = is_new.then_some(names.link.as_str());
                return self.refused(refusal, unheld, here, asked).await;
            }
            self.given.insert(names.link.clone(), names.clone());
        }
        self.test(here, asked).await
    }

    /// openresolv refused. Where this process has no right to ask, nothing was written for a link that is new there; and who
    /// has the right may have told it by hand.
    async fn refused(
        &mut self,
        refusal: Refusal,
        unheld: Option<&str>,
        here: &[(i32, LinkNames)],
        asked: &Asked,
    ) -> Outcome {
        if !matches!(refusal, Refusal::Denied(_)) {
            return refusal.into();
        }
        if let Some(link) = unheld
            && let Err(error) = self.owed.change(link, false)
        {
            tracing::warn!(link, %error, "forget what openresolv did not take");
        }
        match self.test(here, asked).await {
            Outcome::Works => Outcome::Works,
            _ => refusal.into(),
        }
    }

    /// Takes the files of links from openresolv, but for those that stay.
    pub(super) async fn take_back(&mut self, stay: &[&str]) -> Result<(), Refusal> {
        let gone = self.owed.links().iter();
        let gone: Vec<String> = gone
            .filter(|l| !stay.contains(&l.as_str()))
            .cloned()
            .collect();
        for link in gone {
            remove(&link).await?;
            self.given.remove(&link);
            self.tested = None;
            let forgotten = self.owed.change(&link, false);
            forgotten.map_err(|error| Refusal::Failed(format!("{error:#}")))?;
        }
        Ok(())
    }
}
