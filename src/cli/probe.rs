//! `probe`: what the path to a peer is worth.

use clap::Args;

use super::print::{self, Style};
use super::value;
use crate::api::types::{ProbeInfo, Request};

#[derive(Debug, Args)]
#[command(
    after_help = "Sends at most 32 MiB over what carries packets to the peer now, for a few seconds."
)]
pub(super) struct ProbeArgs {
    /// Peer, name or address
    #[arg(value_parser = value::object, value_name = "PEER")]
    peer: String,
}

impl ProbeArgs {
    pub(super) fn request(self) -> Request {
        Request::Probe { target: self.peer }
    }
}

pub(super) fn show(p: &ProbeInfo, style: Style) -> String {
    let mut out = format!(
        "probe {} over {}\n",
        print::clean(&p.target),
        print::clean(&print::path(style, &p.path))
    );
    out += &print::fields(&[
        ("rtt", print::millis(p.rtt_ms)),
        (
            "control rtt",
            p.control_rtt_ms
                .map_or("no answer".to_owned(), print::millis),
        ),
        ("jitter", print::millis(p.jitter_ms)),
        ("loss", print::percent(p.loss)),
        ("bandwidth", p.mbit.map(mbit).unwrap_or_default()),
        (
            "path mtu",
            p.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
        ),
    ]);
    if let Some(note) = &p.note {
        out += &format!("! {}\n", print::clean(note));
    }
    out
}

/// `8.4 Mbit/s`, `412 Mbit/s`, `2.4 Gbit/s`.
fn mbit(mbit: f64) -> String {
    if mbit < 9.95 {
        format!("{mbit:.1} Mbit/s")
    } else if mbit < 999.5 {
        format!("{mbit:.0} Mbit/s")
    } else {
        format!("{:.1} Gbit/s", mbit / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        for (rate, want) in [
            (0.84, "0.8 Mbit/s"),
            (12.3, "12 Mbit/s"),
            (412.0, "412 Mbit/s"),
            (2412.0, "2.4 Gbit/s"),
        ] {
            assert_eq!(mbit(rate), want);
        }
    }
}
