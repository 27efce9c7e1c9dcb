//! A join that waits: what `status` shows of it, and `join` itself at a terminal, which says at once whom it asks and what
//! two people compare, and shows that it goes on.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use super::print::{self, Style};
use super::{Context, value};
use crate::api::types::{
    Error, ErrorKind, IdInfo, Joined, Request, Response, SubnetState, Waiting,
};
use crate::model::error::Code;
use crate::model::find::peer_prefixes;
use crate::model::id::SubnetId;
use crate::model::join::Invite;

/// How often the waiting is shown anew.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);
/// Back to the beginning of the line, which is emptied.
const CLEAR_LINE: &str = "\r\x1b[K";

/// What there is to know of a join that waits.
pub(super) fn fields(waiting: &Waiting, style: Style) -> String {
    let whom = if waiting.invite {
        "who issued the invite"
    } else {
        "the owner or an admin to approve"
    };
    let since = format!("{}, for {whom}", print::moment(style, waiting.since));
    // Who issued an invite compares nothing.
    let own = if waiting.invite {
        String::new()
    } else {
        own(&waiting.fingerprint)
    };
    print::fields(&[("since", since)]) + &own + &heard(waiting)
}

/// Why a join that waits is not done: what it waits for, and what there is to do.
pub(super) fn pending(joined: &Joined) -> Error {
    let id = joined.id;
    let (why, hint) = if joined.invite {
        (
            "its invite is kept, and it joins by itself as soon as who issued that is back",
            "byway status".to_owned(),
        )
    } else {
        (
            "its owner or an admin must approve",
            format!("byway join {id}      (continues the same request)"),
        )
    };
    let message = format!("subnet {id} has not admitted this node yet: {why}");
    Error::new(ErrorKind::Refused, Code::Pending, message).hint(hint)
}

/// What a join has heard so far: whom it asked, and whose subnet it is.
fn heard(waiting: &Waiting) -> String {
    let owner = waiting
        .terms
        .as_ref()
        .map(|t| format!("fingerprint {}", t.owner_fingerprint))
        .unwrap_or_default();
    print::fields(&[("asked", asked(waiting)), ("owner", owner)])
}

/// What the one who asks reads out, and who approves compares.
pub(super) fn own(fingerprint: &str) -> String {
    format!(
        "  your fingerprint  {}   (who approves compares it)\n",
        print::clean(fingerprint)
    )
}

fn asked(waiting: &Waiting) -> String {
    let prefixes = peer_prefixes(waiting.asked.iter().map(|a| a.peer_id));
    let each = waiting
        .asked
        .iter()
        .zip(prefixes)
        .map(|(a, prefix)| match &a.address {
            Some(address) => format!("{prefix} at {address}"),
            None => prefix,
        });
    match each.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => none,
        all if waiting.reached => all,
        all if waiting.invite => format!("{all}   (who issued the invite is not reached yet)"),
        all => format!("{all}   (who may decide is not reached yet)"),
    }
}

/// What a join has in hand.
#[derive(Debug, Clone, Copy)]
enum By {
    /// The ID alone: somebody has to approve.
    Id,
    /// An invite: who issued it lets in at once, where it is reached.
    Invite,
}

/// Sends `join`; where a person looks on, shows what becomes of it.
pub(super) async fn join(request: &Request, context: &Context) -> Result<Response, Error> {
    let Request::Join {
        target,
        peers,
        timeout_ms,
        wait: true,
        ..
    } = request
    else {
        return context.client.call(request).await;
    };
    // What is wrong with an invite is the daemon's to say.
    let goal = match Invite::parse(target) {
        Ok(invite) => Some((invite.subnet, By::Invite)),
        Err(_) => target.parse::<SubnetId>().ok().map(|id| (id, By::Id)),
    };
    let goal = goal.filter(|_| !context.json && !context.quiet && io::stderr().is_terminal());
    let Some((id, by)) = goal else {
        return context.client.call(request).await;
    };
    let here = |s: &crate::api::types::SubnetStatus| {
        s.id == id && !matches!(s.state, SubnetState::Pending | SubnetState::Refused)
    };
    if let Ok(Response::Status(status)) =
        context.client.call(&Request::Status { subnet: None }).await
        && !status.subnets.iter().any(here)
        && let Ok(Response::Id(node)) = context.client.call(&Request::Id).await
    {
        print::stderr(&head(id, by, peers, &node));
    }
    tokio::select! {
        biased;
        answer = context.client.call(request) => {
            print::stderr(CLEAR_LINE);
            answer
        }
        never = watch(id, by, Duration::from_millis(*timeout_ms), context) => match never {},
    }
}

fn head(id: SubnetId, by: By, peers: &[String], node: &IdInfo) -> String {
    let typed: String = peers
        .iter()
        .map(|peer| format!("{}, ", print::clean(peer)))
        .collect();
    match by {
        By::Id => {
            format!(
                "asking for subnet {id}: {typed}peers on the local networks and those connected\n"
            ) + &own(&node.fingerprint)
        }
        By::Invite => format!(
            "joining subnet {id} by invite: {typed}who issued it and those who know the way to it\n"
        ),
    }
}

/// Shows what is new, and below it a line that moves.
async fn watch(id: SubnetId, by: By, patience: Duration, context: &Context) -> Infallible {
    let begun = Instant::now();
    let mut clock = tokio::time::interval(REDRAW_INTERVAL);
    let mut told = String::new();
    loop {
        clock.tick().await;
        let status = context.client.call(&Request::Status { subnet: None }).await;
        let Ok(Response::Status(status)) = status else {
            continue;
        };
        let Some(waiting) = status
            .subnets
            .into_iter()
            .find(|s| s.id == id)
            .and_then(|s| s.waiting)
        else {
            continue;
        };
        let new = heard(&waiting);
        let shown = if new == told {
            String::new()
        } else {
            new.clone()
        };
        told = new;
        let what = match (by, waiting.asked.is_empty()) {
            (By::Id, true) => "looking for somebody who knows it",
            (By::Id, false) => "waiting for approval",
            (By::Invite, true) => "looking for who issued the invite",
            (By::Invite, false) => "waiting for who issued the invite",
        };
        let (gone, most) = (
            begun.elapsed().as_secs(),
            value::millis(patience).div_ceil(1000),
        );
        print::stderr(&format!("{CLEAR_LINE}{shown}{what}: {gone} s of {most} s"));
    }
}
