//! A health check as one line of text: that of the label `byway.health`, and the interval of the command line.

use super::{Check, Probe, Result, printable, wrong};

/// The forms of a label, for whoever got it wrong.
const FORMS: &str = "tcp PORT, http URL or exec COMMAND…, with interval=10s fail=3 before it";

/// Seconds between two questions: `10s`, `2m`, `1h`, or a bare number of seconds.
///
/// # Errors
/// `E-HEALTH` where it is none of these, or not whole seconds.
pub fn interval(text: &str) -> Result<u32> {
    let bad = || {
        let form = "10s, 2m, 1h or a number of seconds";
        wrong(format!("{} is no interval: {form}", printable(text)))
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(bad)?;
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" | "" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    let millis = millis.ok_or_else(bad)?;
    let seconds = millis.checked_div(1000).filter(|s| s * 1000 == millis);
    seconds
        .and_then(|s| u32::try_from(s).ok())
        .ok_or_else(|| wrong("an interval is 1 second to 1 hour, in whole seconds".to_owned()))
}

/// A word of a label, and whether a part of it was quoted.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

/// Splits a line at its blanks as a shell does: `'…'` keeps all of it, `"…"` all but `\"` and `\\`, and a backslash the
/// character behind it. Nothing is expanded.
fn words(line: &str) -> Option<Vec<Word>> {
    let (mut all, mut word): (Vec<Word>, Option<Word>) = (Vec::new(), None);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        if c.is_whitespace() {
            all.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_with(|| Word {
            text: String::new(),
            quoted: false,
        });
        match c {
            '\'' | '"' => {
                word.quoted = true;
                loop {
                    match rest.next()? {
                        end if end == c => break,
                        '\\' if c == '"' && rest.peek().is_some_and(|n| "\"\\".contains(*n)) => {
                            word.text.extend(rest.next());
                        }
                        other => word.text.push(other),
                    }
                }
            }
            '\\' => word.text.push(rest.next()?),
            other => word.text.push(other),
        }
    }
    all.extend(word);
    Some(all)
}

/// A word as a label has to write it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !"'\"\\".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// `interval=…` or `fail=…`, as a word of its own.
fn option(word: &Word) -> Option<(&str, &str)> {
    let (key, value) = word.text.split_once('=').filter(|_| !word.quoted)?;
    matches!(key, "interval" | "fail").then_some((key, value))
}

impl Check {
    /// A check as a label says it: `tcp 80`, `http http://localhost:8080/health` or `exec COMMAND…`. `interval=10s` and
    /// `fail=3` stand before it; behind `tcp` and `http` they may also follow. All behind `exec` is the command, whose words
    /// are split and quoted as in a shell.
    ///
    /// # Errors
    /// `E-HEALTH`.
    pub fn of_label(text: &str, is_own: impl Fn(&str) -> bool) -> Result<Check> {
        let bad = || wrong(format!("{} is no health check: {FORMS}", printable(text)));
        let all = words(text).ok_or_else(|| {
            let why = "a quote is not closed, or a backslash stands last";
            wrong(format!("{} is no health check: {why}", printable(text)))
        })?;
        let at = all.iter().take_while(|w| option(w).is_some()).count();
        let (before, rest) = all.split_at_checked(at).unwrap_or_default();
        let (kind, rest) = rest.split_first().ok_or_else(bad)?;
        let (probe, behind) = match (kind.text.as_str(), rest) {
            ("tcp", [port, behind @ ..]) => {
                (Probe::Tcp(port.text.parse().map_err(|_| bad())?), behind)
            }
            ("http", [url, behind @ ..]) => (Probe::http(&url.text, is_own)?, behind),
            ("exec", [_, ..]) => {
                if let Some((key, _)) = rest.last().and_then(option) {
                    let why = format!("{key}= stands before exec, or in quotes");
                    return Err(wrong(format!("{} is refused: {why}", printable(text))));
                }
                let command = rest.iter().map(|word| word.text.clone()).collect();
                (Probe::exec(command)?, &[][..])
            }
            _ => return Err(bad()),
        };
        let (mut every, mut fail) = (None, None);
        for word in before.iter().chain(behind) {
            match option(word).ok_or_else(bad)? {
                ("interval", text) => every = Some(interval(text)?),
                (_, count) => fail = Some(count.parse().map_err(|_| bad())?),
            }
        }
        Check::new(probe, every, fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_whole_seconds_of_any_unit() {
        for (text, seconds) in [
            ("5", 5),
            ("5s", 5),
            ("2m", 120),
            ("1h", 3600),
            ("3000ms", 3),
            ("0s", 0),
        ] {
            assert_eq!(interval(text).unwrap(), seconds, "{text}");
        }
        for text in [
            "",
            "s",
            "5 s",
            "-5",
            "5d",
            "500ms",
            "1.5s",
            "99999999999s",
            "99999999999999999999h",
        ] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_are_split_and_quoted_as_in_a_shell() {
        let split = |line: &str| {
            let all = words(line)?.into_iter();
            Some(all.map(|w| w.text).collect::<Vec<_>>())
        };
        let is = |line: &str, expected: &[&str]| {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        };
        is("  a  b\tc ", &["a", "b", "c"]);
        is(
            r#"sh -c "test \"$A\" = 'x y'""#,
            &["sh", "-c", r#"test "$A" = 'x y'"#],
        );
        is(r"a\ b 'c\d' '' e'f'g", &["a b", r"c\d", "", "efg"]);
        is("", &[]);
        for open in ["'a", "\"a", "a\\", "\"a\\\""] {
            assert_eq!(split(open), None, "{open}");
        }
    }

    #[test]
    fn a_quoted_word_is_read_as_it_was() {
        for word in ["a", "", "a b", "it's", r"a\b", "\"", "-c", "'", "a\tb"] {
            let read = words(&quoted(word)).unwrap();
            assert_eq!((read.len(), read[0].text.as_str()), (1, word));
        }
        assert_eq!(quoted("a=b"), "a=b");
    }

    #[test]
    fn a_command_takes_all_behind_exec_and_options_stand_before_it() {
        let of = |text: &str| Check::of_label(text, |_| false);
        let check = of("interval=5s fail=2 exec sh -c 'test -e /ok'").unwrap();
        assert_eq!((check.interval, check.fail), (5, 2));
        let words = ["sh", "-c", "test -e /ok"].map(str::to_owned).to_vec();
        assert_eq!(check.probe, Probe::Exec(words));
        assert_eq!(of("fail=2 tcp 80 interval=5").unwrap().interval, 5);
        assert!(of("exec echo 'fail=2'").is_ok(), "quoted, it is a word");
        for wrong in [
            "exec",
            "exec true fail=2",
            "exec 'true",
            "interval=5s",
            "tcp 80 exec",
            "wait=3 exec true",
            "exec ''",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
