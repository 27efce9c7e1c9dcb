//! Text of others in front of people: names, reasons, realms and pages may hold characters that move a terminal's cursor, turn
//! a line around or are not seen at all. Whoever shows or logs such a text writes those out, by the rules here and no others.
//!
//! Pure: text in, text out.

use std::fmt::Write as _;

/// Whether a character is seen as itself in a line: no control, no line break, no mark of direction, nothing without a glyph,
/// and of all spaces only the usual one.
pub fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Letters and marks by their category, which nobody sees all the same (Default_Ignorable_Code_Point), and a blank of Braille.
    let is_unseen = matches!(c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}');
    // Behind another character, so that a mark which joins it counts as seen; the standard library knows the categories.
    let pair: String = ['a', c].iter().collect();
    let is_kept = pair.escape_debug().nth(1) == Some(c);
    is_kept && !is_unseen
}

/// The text with every character that is not seen as itself written out, as `\u{202e}`.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        write_out(&mut out, c);
    }
    out
}

/// The same of the first `most` characters, for use in a sentence: what breaks a line is a space there, and what stands
/// around the text is left out.
pub fn short(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.trim().chars().take(most) {
        write_out(
            &mut out,
            if matches!(c, '\n' | '\r' | '\t') {
                ' '
            } else {
                c
            },
        );
    }
    out
}

/// JSON whose strings hold the same characters, none of them unseen: a terminal shows it as it is.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Between the strings of JSON stand spaces and line breaks; inside, controls below are escaped already.
        if c < '\u{7f}' || is_plain(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

fn write_out(out: &mut String, c: char) {
    if is_plain(c) {
        out.push(c);
    } else {
        let _ = write!(out, "{}", c.escape_unicode());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_moves_turns_or_hides_is_written_out_and_what_is_read_stays() {
        for c in [
            '\0',
            '\x1b',
            '\n',
            '\x7f',
            '\u{85}',
            '\u{9b}',
            '\u{a0}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{202e}',
            '\u{2028}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e0101}',
            '\u{e000}',
            '\u{10ffff}',
        ] {
            assert!(!is_plain(c), "{:x}", u32::from(c));
            assert_eq!(
                plain(&format!("a{c}b")),
                format!("a\\u{{{:x}}}b", u32::from(c))
            );
        }
        let read = "a \"b\" 'c' \\ é e\u{301} ß 日本 क्षि עברית 😀 \u{fffd}";
        assert_eq!(plain(read), read);
    }

    #[test]
    fn a_sentence_takes_one_line_of_a_text_and_not_much_of_it() {
        assert_eq!(
            short(" two\r\nlines\t \u{202e}x\n", 100),
            "two  lines  \\u{202e}x"
        );
        assert_eq!(short(&"x".repeat(500), 80).len(), 80);
    }

    proptest! {
        #[test]
        fn json_means_the_same_and_hides_nothing(text in any::<String>()) {
            let written = json(&serde_json::to_string(&text).unwrap());
            prop_assert!(written.chars().all(is_plain), "{written:?}");
            let read: String = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(read, text);
        }
    }
}
