//! Text for people: tables, numbers, durations, colours, and nothing that a peer could use to drive a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::api::types::{Error, Path, PathChange, Tried};
use crate::model::id::PeerId;
use crate::text;

/// How text is to look, and when it is printed.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether escape sequences for colours are written.
    pub colour: bool,
    /// Seconds since 1970.
    pub now: u64,
}

impl Style {
    /// Colours only for a terminal, and only where nobody asked for none (`--no-color`, `NO_COLOR`).
    pub fn of_process(no_color: bool) -> Style {
        let wanted = !no_color && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Style {
            colour: wanted && io::stdout().is_terminal(),
            now,
        }
    }

    /// `text` in a colour, where there are colours.
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", colour as u8)
        } else {
            text.to_owned()
        }
    }
}

/// Colours by what they say (SGR numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Does not work.
    Bad = 31,
    /// Works.
    Good = 32,
    /// Works, but.
    Odd = 33,
}

/// `text` without what a name of a peer could use to move the cursor, clear the screen or turn the line around.
pub fn clean(text: &str) -> String {
    text::plain(text)
}

/// Rows below a heading, columns as wide as they must be.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    pub fn new(heading: &[&str]) -> Table {
        Table {
            rows: vec![heading.iter().map(|&s| s.to_owned()).collect()],
        }
    }

    /// Adds a row; every cell is cleaned.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.iter().map(|cell| clean(cell)).collect());
    }

    /// Lines with a newline each. Three spaces follow a column, two where its heading is the widest of it.
    pub fn render(&self) -> String {
        let heading = self.rows.first().map(Vec::as_slice).unwrap_or_default();
        let widths: Vec<usize> = (0..heading.len())
            .map(|i| {
                let width = |row: &Vec<String>| row.get(i).map_or(0, |cell| cell.chars().count());
                let head = heading.get(i).map_or(0, |cell| cell.chars().count());
                let widest = self.rows.iter().skip(1).map(width).max().unwrap_or(0);
                if widest > head { widest + 3 } else { head + 2 }
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Lines `  name        value`, for one object.
pub fn fields(lines: &[(&str, String)]) -> String {
    lines
        .iter()
        .filter(|(_, v)| !v.is_empty())
        .map(|(k, v)| format!("  {k:<12}{}\n", clean(v)))
        .collect()
}

/// `1.2 G`, `340 M`, `12 k`, `980 B`: powers of 1000, two digits below ten.
pub fn bytes(n: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1_000, "k"),
    ];
    let Some((unit, letter)) = UNITS.iter().find(|(unit, _)| n >= *unit) else {
        return format!("{n} B");
    };
    let tenths = (n / (unit / 10)).min(9999);
    if tenths < 100 && !tenths.is_multiple_of(10) {
        format!("{}.{} {letter}", tenths / 10, tenths % 10)
    } else {
        format!("{} {letter}", n / unit)
    }
}

/// Milliseconds: `0.42 ms`, `1.8 ms`, `11 ms`, `2.4 s`.
pub fn millis(ms: f64) -> String {
    if ms < 1.0 {
        format!("{ms:.2} ms")
    } else if ms < 9.95 {
        format!("{ms:.1} ms")
    } else if ms < 9999.5 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

/// A share of 1 as `0%`, `0.1%`, `12%`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent <= 0.0 || !percent.is_finite() {
        "0%".to_owned()
    } else if percent < 9.95 {
        format!("{:.1}%", percent.max(0.1))
    } else {
        format!("{percent:.0}%")
    }
}

/// A span of seconds in whole ones of one unit, hours up to two days: `40 s`, `5 min`, `24 h`, `89 d`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// What is left until a moment: `in 24 h`, or `expired`.
pub fn until(style: Style, moment: u64) -> String {
    match moment.checked_sub(style.now) {
        // To the nearest of its unit: what was made for 90 days has them for its first hours.
        Some(left) if left > 0 => {
            let unit = match left {
                0..60 => 0,
                60..3600 => 60,
                3600..172_800 => 3600,
                _ => 86_400,
            };
            format!("in {}", span(left + unit / 2))
        }
        _ => "expired".to_owned(),
    }
}

/// How long ago: `3 min ago`.
pub fn ago(style: Style, moment: u64) -> String {
    format!("{} ago", span(style.now.saturating_sub(moment)))
}

/// A moment in UTC: `14:02 UTC`, with the date where it is not today.
pub fn moment(style: Style, seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02} UTC", rest / 3600, rest % 3600 / 60);
    if days == style.now / 86_400 {
        return clock;
    }
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {clock}")
}

/// Year, month and day of a number of days since 1970 (proleptic Gregorian calendar, eras of 400 years).
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last of one.
    let shifted = days + 719_468;
    let (era, in_era) = (shifted / 146_097, shifted % 146_097);
    let year = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Addresses side by side.
pub fn addresses(list: &[IpAddr]) -> String {
    list.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("  ")
}

/// `a, b`, or `-`.
pub fn listed<T: ToString>(list: &[T]) -> String {
    if list.is_empty() {
        "-".to_owned()
    } else {
        list.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// How packets reach a peer, in words.
pub fn path(style: Style, path: &Path) -> String {
    let via = path.via.as_deref().unwrap_or_default();
    match path.kind.as_str() {
        "direct" if path.carrier.as_deref() == Some("datagram") => {
            format!("direct udp {via}").trim_end().to_owned()
        }
        "direct" => format!(
            "direct {} {via}",
            path.transport.as_deref().unwrap_or("stream")
        )
        .trim_end()
        .to_owned(),
        "relay" => {
            let relay = path.via_name.clone().unwrap_or_else(|| relay_id(via));
            let why = path.reason.as_deref().map(relay_reason);
            match why {
                Some(why) => format!("relay {relay} ({why})"),
                None => format!("relay {relay}"),
            }
        }
        "offline" if path.since == 0 => "offline".to_owned(),
        "offline" => {
            let why = match path.reason.as_deref() {
                Some("no-address") => " (no address known)".to_owned(),
                Some("not-reached") => format!(" (not reached at {})", path.places()),
                _ => String::new(),
            };
            format!("offline since {}{why}", moment(style, path.since))
        }
        other => other.to_owned(),
    }
}

/// What a relay without a name is called: as other peers, by the first characters of its ID.
fn relay_id(via: &str) -> String {
    match via.parse::<PeerId>() {
        Ok(peer) => peer.short(),
        Err(_) => via.to_owned(),
    }
}

/// An address that was tried: `203.0.113.9:4100 observed  no answer to 8 probes, the last 3 s ago`.
pub fn tried(style: Style, tried: &Tried) -> String {
    let at = format!("{} {}", tried.address, tried.kind);
    let sent = |what: &str| {
        let last = tried.last.map(|last| ago(style, last));
        last.map(|last| format!(", {what} {last}"))
            .unwrap_or_default()
    };
    let last = sent("the last");
    match (tried.answered, tried.tries) {
        // When the answer came is not known: only when the address was asked last.
        (true, _) => format!("{at}  answered before{}", sent("last asked")),
        (false, 0) => format!("{at}  not yet"),
        (false, 1) => format!("{at}  no answer to one probe{last}"),
        (false, n) => format!("{at}  no answer to {n} probes{last}"),
    }
}

/// A change of a path: `14:02 UTC  relay b -> direct udp 203.0.113.9:4100: a probe was answered`.
pub fn change(style: Style, change: &PathChange) -> String {
    let end = |path: &Option<String>| path.clone().unwrap_or_else(|| "no path".to_owned());
    format!(
        "{}  {} -> {}: {}",
        moment(style, change.at),
        end(&change.from),
        end(&change.to),
        change.cause
    )
}

/// Why a path is relayed, in a few words.
pub fn relay_reason(reason: &str) -> &str {
    match reason {
        "symmetric-nat-both" => "both NATs symmetric",
        "symmetric-nat-here" => "symmetric NAT here",
        "symmetric-nat-there" => "symmetric NAT there",
        "udp-blocked" => "UDP blocked",
        "no-common-family" => "no common address family",
        "probing" => "a direct path is looked for",
        "policy" => "its addresses are denied here",
        "peer-silent" => "it answers no datagram",
        "blocked-data" => "packets are dropped on the direct path",
        "relay-only-by-choice" => "no UDP port is opened",
        other => other,
    }
}

/// `error: MESSAGE (CODE)` and, where there is something to do, `  try:  HINT`.
pub fn error(style: Style, error: &Error) -> String {
    // The message may carry what a peer said; a message of several lines stays one.
    let mut out = format!(
        "{} {} ({})\n",
        style.paint(Colour::Bad, "error:"),
        clean(&error.message),
        clean(&error.code)
    );
    if !error.hint.is_empty() {
        let _ = writeln!(out, "  try:  {}", clean(&error.hint));
    }
    out
}

/// The same for programs.
pub fn error_json(error: &Error) -> String {
    let shown = serde_json::json!({"error": {"code": error.code, "message": error.message, "hint": error.hint}});
    text::json(&shown.to_string()) + "\n"
}

/// Writes to standard error; what cannot be told there can be told nowhere.
pub fn stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style {
        colour: false,
        now: 1_700_000_000,
    };

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 k"),
            (8_000_000, "8 M"),
            (340_400_000, "340 M"),
        ];
        for (n, want) in cases
            .into_iter()
            .chain([(1_240_000_000, "1.2 G"), (u64::MAX, "18446744 T")])
        {
            assert_eq!(bytes(n), want);
        }
        for (ms, want) in [
            (0.416, "0.42 ms"),
            (1.8, "1.8 ms"),
            (9.97, "10 ms"),
            (11.2, "11 ms"),
            (12_400.0, "12.4 s"),
        ] {
            assert_eq!(millis(ms), want);
        }
        for (share, want) in [
            (0.0, "0%"),
            (0.001, "0.1%"),
            (0.12, "12%"),
            (1.0, "100%"),
            (f64::NAN, "0%"),
        ] {
            assert_eq!(percent(share), want);
        }
    }

    #[test]
    fn moments_are_told_in_utc_with_the_date_where_it_matters() {
        assert_eq!(moment(STYLE, 1_700_000_000 - 3600), "21:13 UTC");
        assert_eq!(moment(STYLE, 951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(moment(STYLE, 0), "1970-01-01 00:00 UTC");
        for (left, told) in [
            (90 * 86_400, "in 90 d"),
            (90 * 86_400 - 3600, "in 90 d"),
            (89 * 86_400, "in 89 d"),
            (86_400, "in 24 h"),
            (86_400 - 300, "in 24 h"),
            (3600 - 5, "in 1 h"),
            (90, "in 2 min"),
            (40, "in 40 s"),
        ] {
            assert_eq!(until(STYLE, STYLE.now + left), told);
        }
        assert_eq!(until(STYLE, STYLE.now), "expired");
        assert_eq!(ago(STYLE, STYLE.now - 200), "3 min ago");
    }

    #[test]
    fn what_peers_say_cannot_drive_a_terminal() {
        assert_eq!(
            clean("a\x1b[2J\n\u{202e}b\u{9b}é"),
            "a\\u{1b}[2J\\u{a}\\u{202e}b\\u{9b}é"
        );
        let mut table = Table::new(&["A", "B"]);
        table.row(["x\r".into(), "\x07".into()]);
        assert_eq!(table.render(), "A        B\nx\\u{d}   \\u{7}\n");
    }

    #[test]
    fn errors_end_with_what_to_do() {
        let e = Error::new(crate::api::types::ErrorKind::Conflict, "E-X", "cannot").hint("byway x");
        assert_eq!(error(STYLE, &e), "error: cannot (E-X)\n  try:  byway x\n");
        assert_eq!(
            error_json(&e),
            "{\"error\":{\"code\":\"E-X\",\"hint\":\"byway x\",\"message\":\"cannot\"}}\n"
        );
    }

    #[test]
    fn paths_are_told_in_words() {
        let path = |kind: &str,
                    carrier: Option<&str>,
                    transport: Option<&str>,
                    via: Option<&str>,
                    reason: Option<&str>| {
            let text = |s: Option<&str>| s.map(ToOwned::to_owned);
            super::path(
                STYLE,
                &Path {
                    kind: kind.into(),
                    carrier: text(carrier),
                    transport: text(transport),
                    via: text(via),
                    reason: text(reason),
                    since: STYLE.now - 60,
                    ..Path::default()
                },
            )
        };
        let far = Some("203.0.113.9:4100");
        assert_eq!(
            path("direct", Some("datagram"), Some("udp"), far, None),
            "direct udp 203.0.113.9:4100"
        );
        assert_eq!(
            path("direct", Some("stream"), Some("quic"), far, None),
            "direct quic 203.0.113.9:4100"
        );
        assert_eq!(
            path("direct", Some("stream"), Some("tcp"), None, None),
            "direct tcp"
        );
        assert_eq!(
            path(
                "relay",
                Some("stream"),
                None,
                Some("b"),
                Some("symmetric-nat-both")
            ),
            "relay b (both NATs symmetric)"
        );
        let relay = PeerId([2; 32]);
        let id = relay.to_string();
        assert_eq!(
            path(
                "relay",
                Some("datagram"),
                Some("udp"),
                Some(&id),
                Some("probing")
            ),
            format!("relay {} (a direct path is looked for)", relay.short()),
            "one that has no name"
        );
        let named = Path {
            kind: "relay".into(),
            via: Some(id),
            via_name: Some("r".into()),
            ..Path::default()
        };
        assert_eq!(super::path(STYLE, &named), "relay r");
        assert_eq!(
            path("offline", None, None, None, None),
            "offline since 22:12 UTC"
        );
        assert_eq!(
            path("offline", None, None, None, Some("no-address")),
            "offline since 22:12 UTC (no address known)"
        );
        assert_eq!(
            path("offline", None, None, far, Some("not-reached")),
            "offline since 22:12 UTC (not reached at 203.0.113.9:4100)"
        );
        let relay = PeerId([2; 32]);
        let circuit = format!("/ip4/192.0.2.7/udp/4100/quic-v1/p2p/{relay}/p2p-circuit");
        let over_tcp = format!("/ip4/192.0.2.7/tcp/4100/p2p/{relay}/p2p-circuit");
        let short = relay.short();
        for (via, shown) in [
            (format!("{circuit}, {over_tcp}"), format!("relay {short}")),
            (
                format!("203.0.113.9:4100, {circuit} and 3 more"),
                format!("203.0.113.9:4100, relay {short} and 3 more"),
            ),
        ] {
            assert_eq!(
                path(
                    "offline",
                    None,
                    None,
                    Some(via.as_str()),
                    Some("not-reached")
                ),
                format!("offline since 22:12 UTC (not reached at {shown})"),
            );
        }
    }
}
