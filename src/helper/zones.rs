//! Our links in a zone of firewalld, which takes that from root alone, by `firewall-cmd`.
//!
//! What of it can be asked is fixed here: which zones there are, and to put links of ours into one of two zones or take
//! them out again, at run time.

use std::io;
use std::process::{Command, Stdio};

use super::wire::Error;
use crate::model::host::is_link_name;

/// Where the program is looked for besides PATH.
const PLACES: [&str; 2] = ["firewall-cmd", "/usr/bin/firewall-cmd"];
/// The zones that links are put into.
const ZONES: [&str; 2] = ["byway", "trusted"];
/// How the names of our links begin.
const OURS: &str = "bw";
/// Most links of one request.
const MAX_LINKS: usize = 256;
/// Characters of a complaint that are passed on.
const MAX_COMPLAINT: usize = 600;

/// The names of all zones.
///
/// # Errors
/// firewalld does not answer.
pub(super) fn names() -> Result<Vec<String>, Error> {
    let said = run(&["--get-zones".to_owned()])?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

/// Puts links into a zone, or takes them out of it; `+` at the end of one stands for any ending.
///
/// # Errors
/// It is another zone, a link that is not ours, or firewalld refuses.
pub(super) fn change(zone: &str, links: &[String], put: bool) -> Result<(), Error> {
    let is_ours = |link: &String| {
        let plain = link.strip_suffix('+').unwrap_or(link);
        plain.starts_with(OURS) && is_link_name(plain)
    };
    if !ZONES.contains(&zone) || links.len() > MAX_LINKS || !links.iter().all(is_ours) {
        return Err(Error::Refused(
            "no links of ours, or no zone for them".to_owned(),
        ));
    }
    let what = if put { "add" } else { "remove" };
    let mut args = vec![format!("--zone={zone}")];
    args.extend(
        links
            .iter()
            .map(|link| format!("--{what}-interface={link}")),
    );
    run(&args).map(drop)
}

/// What the program says; what it complains of is the error.
fn run(args: &[String]) -> Result<String, Error> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in PLACES {
        let done = Command::new(place)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output();
        match done {
            Ok(output) if output.status.success() => {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said: String = said.trim().chars().take(MAX_COMPLAINT).collect();
                return Err(Error::Refused(format!("firewall-cmd: {said}")));
            }
            Err(error) => last = error,
        }
    }
    Err(Error::Refused(format!("run firewall-cmd: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_links_go_into_only_two_zones() {
        let refused = |zone: &str, link: &str| {
            let said = change(zone, &[link.to_owned()], true);
            matches!(said, Err(Error::Refused(why)) if why.starts_with("no links of ours"))
        };
        for (zone, link) in [
            ("public", "bw-lab"),
            ("trusted --permanent", "bw-lab"),
            ("trusted", "eth0"),
            ("trusted", "+"),
            ("trusted", "bw-lab --permanent"),
            ("byway", "bw/lab"),
            ("byway", ""),
        ] {
            assert!(refused(zone, link), "{zone} {link}");
        }
        assert!(matches!(
            change("trusted", &vec!["bw-lab".to_owned(); MAX_LINKS + 1], true),
            Err(Error::Refused(_))
        ));
    }
}
