//! `ping`: one line a probe as it comes, then the summary; control and data path apart.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::print;
use super::value;
use super::{Context, Outcome, json};
use crate::api::types::{Error, ErrorKind, PathKind, PingInfo, Request, Response};
use crate::model::error::Code;

#[derive(Debug, Args)]
pub(super) struct PingArgs {
    /// Peer, name or address
    #[arg(value_parser = value::object, value_name = "PEER|NAME|ADDRESS")]
    target: String,
    /// How many probes [default: 4, or 30 with --until-direct]
    #[arg(short, long, value_parser = value::probes)]
    count: Option<u32>,
    /// How long each is waited for
    #[arg(long, default_value = "2s", value_parser = value::duration)]
    timeout: Duration,
    /// Measure this kind of path, whatever kind packets take now; exit 8 where none leads to the peer
    #[arg(long, value_name = "KIND", conflicts_with = "until_direct")]
    path: Option<Kind>,
    /// Stop at the first answer over a direct path; exit 8 if none comes within COUNT probes
    #[arg(long)]
    until_direct: bool,
}

/// A kind of path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// From here to the peer itself
    Direct,
    /// Through a relay
    Relay,
}

/// Probes where nobody says how many.
const PROBES: u32 = 4;
/// Probes with `--until-direct`: twice the 15 s for which `status` gives the reason `probing`.
const PROBES_UNTIL_DIRECT: u32 = 30;

/// Time from one probe to the next.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(args: PingArgs, context: &Context) -> Result<Outcome, Error> {
    let timeout_ms = value::millis(args.timeout);
    let request = Request::Ping {
        target: args.target.clone(),
        count: 1,
        timeout_ms,
        path: args.path.map(|kind| match kind {
            Kind::Direct => PathKind::Direct,
            Kind::Relay => PathKind::Relay,
        }),
    };
    let usual = if args.until_direct {
        PROBES_UNTIL_DIRECT
    } else {
        PROBES
    };
    let mut total: Option<PingInfo> = None;
    let mut clock = tokio::time::interval(PROBE_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for _ in 0..args.count.unwrap_or(usual) {
        tokio::select! {
            // Ctrl-C ends the probes, not the summary.
            _ = tokio::signal::ctrl_c() => break,
            _ = clock.tick() => {}
        }
        let probe = probe(context, &request).await?;
        let first = total.is_none();
        let sum = match total.as_mut() {
            Some(sum) => {
                add(sum, &probe);
                sum.clone()
            }
            None => total.insert(probe.clone()).clone(),
        };
        if probe.absent {
            break;
        }
        if !context.json {
            let head = if first {
                heading(&probe, context.style)
            } else {
                String::new()
            };
            // What nobody reads need not be measured.
            if !context.show(&format!("{head}{}", line(sum.sent, &probe)))? {
                break;
            }
        }
        if args.until_direct && probe.received > 0 && is_direct(&probe) {
            break;
        }
    }
    total.map_or_else(|| Ok(Outcome::default()), |sum| told(sum, &args, context))
}

fn is_direct(probe: &PingInfo) -> bool {
    probe.path.kind == "direct"
}

/// Sends one probe.
async fn probe(context: &Context, request: &Request) -> Result<PingInfo, Error> {
    match context.client.call(request).await? {
        Response::Ping(probe) => Ok(probe),
        _ => Err(Error::new(
            ErrorKind::Failed,
            Code::Api,
            "the daemon answered something else than a ping",
        )),
    }
}

/// How a peer is reached, and what to do where that is worse than it might be.
fn how(sum: &PingInfo, style: print::Style) -> String {
    let remedy = sum.path.remedy.as_deref();
    let remedy = remedy.map(|text| format!("; {text}")).unwrap_or_default();
    format!("{}{remedy}", print::path(style, &sum.path))
}

/// Why what was asked for did not come.
fn shortfall(sum: &PingInfo, args: &PingArgs, style: print::Style) -> Option<Error> {
    let (target, sent) = (&sum.target, sum.sent);
    let error = |code: Code, message: String| {
        Some(Error::new(ErrorKind::Timeout, code, message).hint(format!("byway doctor {target}")))
    };
    match args.path {
        Some(kind) if sum.received == 0 => {
            let way = how(sum, style);
            let what = match (kind, sum.absent) {
                (Kind::Direct, true) => format!("{target} is not reached directly"),
                (Kind::Relay, true) => format!("no relay is held ready for {target}"),
                (Kind::Direct, false) => format!("no answer from {target} directly"),
                (Kind::Relay, false) => format!("no answer from {target} through a relay"),
            };
            error(Code::NoPath, format!("{what}: its path is {way}"))
        }
        _ if sum.received == 0 => {
            let message = format!("no answer from {target}: none of {sent} probes came back");
            Some(Error::new(ErrorKind::Timeout, Code::Timeout, message).hint("byway status"))
        }
        _ if args.until_direct && !is_direct(sum) => {
            let way = how(sum, style);
            let message = format!("{target} is not reached directly after {sent} probes: {way}");
            error(Code::NotDirect, message)
        }
        _ => None,
    }
}

/// What all probes come to.
fn told(sum: PingInfo, args: &PingArgs, context: &Context) -> Result<Outcome, Error> {
    let error = shortfall(&sum, args, context.style);
    // With --quiet and no answer only the error is told, and where there was nothing to measure.
    let is_empty = sum.absent && sum.received == 0;
    let text = if is_empty || context.quiet && error.is_some() {
        String::new()
    } else {
        summary(&sum)
    };
    Ok(Outcome {
        text,
        json: json(&Response::Ping(sum))?,
        error,
        ..Outcome::default()
    }
    .asked_for())
}

fn add(sum: &mut PingInfo, probe: &PingInfo) {
    sum.sent = sum.sent.saturating_add(probe.sent);
    sum.received = sum.received.saturating_add(probe.received);
    sum.control_rtt_ms.extend(&probe.control_rtt_ms);
    sum.rtt_ms.extend(&probe.rtt_ms);
    sum.address = probe.address.or(sum.address);
    sum.path = probe.path.clone();
    sum.over = probe.over.clone().or(sum.over.take());
    sum.absent = probe.absent;
    sum.refused.clone_from(&probe.refused);
}

fn heading(p: &PingInfo, style: print::Style) -> String {
    let address = p.address.map(|a| format!(" ({a})")).unwrap_or_default();
    format!(
        "PING {}{address} over {}\n",
        print::clean(&p.target),
        print::clean(&print::path(style, p.over.as_ref().unwrap_or(&p.path)))
    )
}

/// `3: 11 ms  (control 9.8 ms)`.
fn line(number: u32, probe: &PingInfo) -> String {
    let last = |list: &[Option<f64>]| list.last().copied().flatten();
    let control = last(&probe.control_rtt_ms)
        .map(|ms| format!("  (control {})", print::millis(ms)))
        .unwrap_or_default();
    match last(&probe.rtt_ms) {
        Some(ms) => format!("{number}: {}{control}\n", print::millis(ms)),
        None => format!("{number}: no answer{control}\n"),
    }
}

/// The last lines, as ping(8) has them.
pub(super) fn summary(p: &PingInfo) -> String {
    let lost = f64::from(p.sent.saturating_sub(p.received)) / f64::from(p.sent.max(1));
    let mut out = format!(
        "--- {} ---\n{} sent, {} received, {} lost\n",
        print::clean(&p.target),
        p.sent,
        p.received,
        print::percent(lost)
    );
    for (what, times) in [("rtt", &p.rtt_ms), ("control", &p.control_rtt_ms)] {
        let times: Vec<f64> = times.iter().copied().flatten().collect();
        let (Some(least), Some(most)) = (
            times.iter().copied().reduce(f64::min),
            times.iter().copied().reduce(f64::max),
        ) else {
            continue;
        };
        // Counts are at most 100,000: exact in a double.
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let [least, mean, most] = [least, mean, most].map(print::millis);
        out += &format!("{what} min/avg/max  {least} / {mean} / {most}\n");
    }
    for refused in &p.refused {
        out += &format!(
            "! {}   ({})\n",
            print::clean(&refused.message),
            print::clean(&refused.help)
        );
    }
    out
}
