//! Variables in a compose file, `${NAME:-default}` and its kin, and the file `.env` beside it: as compose reads both.

use std::collections::BTreeMap;

use super::super::value::{Checked, shown, wrong};
use crate::model::error::Code;

/// How deep defaults may hold variables.
const DEEPEST: usize = 16;
/// Longest text that variables make, in bytes.
const LONGEST: usize = 1 << 16;

/// The values of variables: those of the process, and where it has none those of `.env`.
#[derive(Debug, Clone, Default)]
pub(super) struct Variables {
    process: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
}

fn is_name(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty() && text.bytes().all(word) && !text.starts_with(|c: char| c.is_ascii_digit())
}

impl Variables {
    /// `env` is the text of the file `.env`.
    ///
    /// # Errors
    /// `E-COMPOSE`, with the number of the line of that file. Nothing of the line is told: the file holds passwords, and may
    /// be a link to one that was not meant to be shown.
    pub fn new(process: BTreeMap<String, String>, env: &str) -> Checked<Variables> {
        let mut variables = Variables {
            process,
            file: BTreeMap::new(),
        };
        for (number, line) in env.lines().enumerate() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: &str| {
                let number = number.saturating_add(1);
                wrong(Code::Compose, format!(".env, line {number}: {why}"))
            };
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            let name = name.trim();
            if !is_name(name) {
                return Err(bad("it does not begin with the name of a variable"));
            }
            let value = variables.unquoted(value.trim()).map_err(bad)?;
            variables.file.insert(name.to_owned(), value);
        }
        Ok(variables)
    }

    /// A value of `.env` without its quotes: in single quotes nothing stands for anything else.
    fn unquoted(&self, value: &str) -> Result<String, &'static str> {
        let filled = |text: &str| {
            let filled = self.filled(text);
            filled.map_err(|_| "a variable in its value cannot be read ($$ is a dollar)")
        };
        if let Some(rest) = value.strip_prefix('\'') {
            let (inner, _) = rest.split_once('\'').ok_or("a quote is not closed")?;
            return Ok(inner.to_owned());
        }
        if let Some(rest) = value.strip_prefix('"') {
            let (inner, _) = rest.split_once('"').ok_or("a quote is not closed")?;
            return filled(inner);
        }
        let bare = value.split(" #").next().unwrap_or_default().trim_end();
        filled(bare)
    }

    /// The value of a variable; none where it is not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.process.get(name).or_else(|| self.file.get(name));
        found.map(String::as_str)
    }

    /// The text with every variable's value in its place; one that is not set is empty, as with compose.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    pub fn filled(&self, text: &str) -> Result<String, String> {
        self.fill(text, DEEPEST)
    }

    fn fill(&self, text: &str, depth: usize) -> Result<String, String> {
        let depth = depth
            .checked_sub(1)
            .ok_or("defaults in defaults without end")?;
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, behind)) = rest.split_once('$') {
            out += before;
            rest = if let Some(behind) = behind.strip_prefix('$') {
                out.push('$');
                behind
            } else if let Some(inner) = behind.strip_prefix('{') {
                let end = closing(inner)
                    .ok_or_else(|| format!("a variable of {} is not closed", shown(text)))?;
                let (inner, behind) = inner.split_at(end);
                out += &self.value(inner, depth)?;
                behind.strip_prefix('}').unwrap_or(behind)
            } else {
                let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
                let (name, behind) = behind.split_at(behind.find(word).unwrap_or(behind.len()));
                if !is_name(name) {
                    return Err(format!(
                        "{} has a $ that begins no variable: $$ is a dollar",
                        shown(text)
                    ));
                }
                out += self.get(name).unwrap_or_default();
                behind
            };
            if out.len() > LONGEST {
                return Err("its variables make it too long".into());
            }
        }
        Ok(out + rest)
    }

    /// What stands between the braces: a name, and what there is to do where it is not set or empty.
    fn value(&self, inner: &str, depth: usize) -> Result<String, String> {
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let (name, rest) = inner.split_at(inner.find(word).unwrap_or(inner.len()));
        if !is_name(name) {
            return Err(format!("{} names no variable", shown(inner)));
        }
        let set = self.get(name);
        let (found, rest) = match rest.strip_prefix(':') {
            Some(rest) => (set.filter(|value| !value.is_empty()), rest),
            None => (set, rest),
        };
        let mut parts = rest.chars();
        match (parts.next(), parts.as_str(), found) {
            (None, _, found) if !inner.ends_with(':') => Ok(found.unwrap_or_default().to_owned()),
            (Some('-'), _, Some(value)) | (Some('?'), _, Some(value)) => Ok(value.to_owned()),
            (Some('-'), default, None) | (Some('+'), default, Some(_)) => self.fill(default, depth),
            (Some('+'), _, None) => Ok(String::new()),
            (Some('?'), why, None) => {
                let why = self.fill(why, depth)?;
                Err(format!("variable {name} is needed: {}", shown(&why)))
            }
            _ => Err(format!("{} is no form of a variable", shown(inner))),
        }
    }
}

/// Where the brace that was opened before is closed.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let bytes = text.as_bytes();
    for (place, byte) in bytes.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|p| bytes.get(p));
        match byte {
            b'{' if before == Some(&b'$') => open = open.saturating_add(1),
            b'}' if open == 0 => return Some(place),
            b'}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        let process = [("A", "a"), ("EMPTY", ""), ("BOTH", "process")];
        let process = process.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let env = "# comment\nBOTH=file\nexport PORT=8080 # why\nQ=\"x ${A}\"\nS='$A'\n\nBARE\n";
        Variables::new(process.into(), env).unwrap()
    }

    #[test]
    fn variables_are_filled_in_as_compose_does() {
        let variables = variables();
        for (text, filled) in [
            ("plain", "plain"),
            ("$A-${A}", "a-a"),
            ("$$A", "$A"),
            ("${BOTH}", "process"),
            ("${PORT}:${Q}:${S}:${BARE}", "8080:x a:$A:"),
            ("${NONE}x$NONE", "x"),
            ("${NONE:-d}${EMPTY:-d}${EMPTY-d}${NONE-d}", "ddd"),
            ("${A:+set}${EMPTY:+set}${EMPTY+set}${NONE+set}", "setset"),
            ("${NONE:-${OTHER:-${A}}}", "a"),
            ("${A?no}${A:?no}", "aa"),
            ("${NONE:-8080}:80", "8080:80"),
        ] {
            assert_eq!(variables.filled(text).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        let variables = variables();
        for (text, says) in [
            ("${A", "not closed"),
            ("$", "begins no variable"),
            ("$1", "begins no variable"),
            ("${1A}", "names no variable"),
            ("${}", "names no variable"),
            ("${A:}", "no form"),
            ("${A/x/y}", "no form"),
            ("${NONE:?give it}", "variable NONE is needed: \"give it\""),
            ("${EMPTY:?}", "variable EMPTY is needed"),
        ] {
            let why = variables.filled(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
        let deep = "${N:-".repeat(40) + &"}".repeat(40);
        assert!(variables.filled(&deep).unwrap_err().contains("without end"));
        for (env, says) in [
            ("SECRET B=1", ".env, line 1: it does not begin"),
            ("root:SECRET:19000::", ".env, line 1: it does not begin"),
            ("\nA='SECRET", ".env, line 2: a quote"),
            ("A=1\nB=${SECRET", ".env, line 2: a variable"),
            ("B=\"$6$SECRET\"", ".env, line 1: a variable"),
            ("B=${X:?SECRET}", ".env, line 1: a variable"),
        ] {
            let error = Variables::new(BTreeMap::new(), env).unwrap_err();
            assert!(error.message.starts_with(says), "{}", error.message);
            assert!(!error.message.contains("SECRET"), "{}", error.message);
        }
    }
}
