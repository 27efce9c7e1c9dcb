//! `workload health`.

use clap::{Args, ValueEnum};

use super::super::print::{self, Style};
use super::super::value::{self, Checked, wrong};
use crate::api::types::{HealthCheck, HealthInfo, HealthProbe, Request};
use crate::model::error::Code;
use crate::model::health;

/// How a workload is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Whether a port takes a connection
    Tcp,
    /// Whether a GET answers with a status from 200 to 399
    Http,
    /// Whether a command in the workload's container ends with 0, run by its engine as the container's own user
    Exec,
    /// It is not asked
    None,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct HealthArgs {
    /// Name of the workload
    #[arg(value_parser = value::object)]
    workload: String,
    /// How it is asked
    #[arg(value_enum)]
    way: Way,
    /// PORT, URL of the workload itself, or COMMAND with its words (behind `--` where they begin with a dash)
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Time between two questions, in whole seconds: 10s, 2m, or 10 [default: 10s]
    #[arg(long, value_parser = interval)]
    interval: Option<u32>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100), value_name = "COUNT")]
    fail: Option<u16>,
    /// Where several subnets have a workload of that name
    #[arg(long, value_parser = value::subnet)]
    subnet: Option<String>,
}

/// The interval of a check, as a label has it.
fn interval(text: &str) -> Checked<u32> {
    match health::interval(text) {
        Ok(seconds @ 1..=3600) => Ok(seconds),
        Ok(_) => Err(wrong(Code::Health, "an interval is 1s to 1h".to_owned())),
        Err(error) => Err(wrong(Code::Health, error.message)),
    }
}

impl HealthArgs {
    pub(super) fn request(self) -> Checked<Request> {
        let bad = |why: &str| wrong(Code::Health, why.to_owned());
        let probe = match (self.way, &self.what[..]) {
            (Way::Tcp, [port]) => match port.parse() {
                Ok(port) if port != 0 => Some(HealthProbe::Tcp(port)),
                _ => return Err(bad("a port is 1 to 65535")),
            },
            (Way::Tcp, _) => return Err(bad("tcp has one PORT behind it")),
            (Way::Http, [url]) => Some(HealthProbe::Http(url.clone())),
            (Way::Http, _) => return Err(bad("http has one URL behind it")),
            (Way::Exec, []) => return Err(bad("exec has a COMMAND behind it")),
            (Way::Exec, words) => Some(HealthProbe::Exec(words.to_vec())),
            (Way::None, []) => None,
            (Way::None, _) => return Err(bad("none has nothing behind it")),
        };
        if probe.is_none() && (self.interval.is_some() || self.fail.is_some()) {
            return Err(bad("who is not asked has no --interval and no --fail"));
        }
        let check = probe.map(|probe| HealthCheck {
            probe,
            interval_s: self.interval,
            fail: self.fail,
        });
        Ok(Request::WorkloadHealth {
            workload: self.workload,
            subnet: self.subnet,
            check,
        })
    }
}

/// A workload's health in one line.
pub(super) fn text(health: &HealthInfo, style: Style) -> String {
    let since = health
        .since
        .map(|at| format!(" since {}", print::ago(style, at)));
    let why = health.failure.as_ref().map(|why| format!(", {why}"));
    format!(
        "{}{}{}: {} every {} s, {} times in a row",
        health.state,
        since.unwrap_or_default(),
        why.unwrap_or_default(),
        health.check,
        health.interval_s,
        health.fail
    )
}
