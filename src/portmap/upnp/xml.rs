//! Reads the XML of a router, which anybody may have written: whatever it says, the time that it takes is in proportion to its
//! length, and so is the memory.
//!
//! No tree is made, no name resolved to its namespace, no attribute looked at. What no router has reason to say is refused
//! before the parser sees it.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, Event};

/// Bytes of a description or an answer; those of routers have ten thousand at most.
pub(in crate::portmap) const LONGEST: usize = 64 << 10;
/// Tags, of which an element has two; the longest description of a router has a few hundred.
const TAGS: usize = 4096;
/// Elements inside each other.
const DEPTH: usize = 32;
/// Declarations of namespaces: a description has one or two, an answer three.
const NAMESPACES: usize = 32;
const DECLARES: &str = "it declares types or entities";

/// Calls `each` at the end of every element, with its name and those it is inside of from the root on, all without prefix, and
/// with its text where it has no element inside. What was said before an error is worth nothing.
///
/// # Errors
/// Why it is not read, in words.
pub(in crate::portmap) fn read(
    bytes: &[u8],
    mut each: impl FnMut(&[String], &str),
) -> Result<(), &'static str> {
    if bytes.len() > LONGEST {
        return Err("it is too long");
    }
    // Names of people and models are in any encoding; what is looked for is ASCII in all of them.
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    screen(text)?;
    let mut reader = Reader::from_str(text);
    let (mut path, mut inside, mut is_leaf) = (Vec::new(), String::new(), false);
    let mut has_root = false;
    loop {
        match reader.read_event().map_err(|_| "it is no XML")? {
            Event::Start(_) | Event::Empty(_) if path.is_empty() && has_root => {
                return Err("it has two roots");
            }
            Event::Start(tag) => {
                has_root = true;
                path.push(tag.local_name().into_inner().to_owned());
                if path.len() > DEPTH {
                    return Err("it is too deep");
                }
                (is_leaf, inside) = (true, String::new());
            }
            Event::Empty(tag) => {
                has_root = true;
                path.push(tag.local_name().into_inner().to_owned());
                each(&path, "");
                path.pop();
                is_leaf = false;
            }
            // That it closes what is open the parser knows.
            Event::End(_) => {
                each(&path, if is_leaf { inside.trim() } else { "" });
                path.pop();
                is_leaf = false;
            }
            Event::Text(text) => inside.push_str(&text.xml10_content()),
            Event::CData(text) => inside.push_str(&text.xml10_content()),
            Event::GeneralRef(name) => push(&mut inside, &name)?,
            Event::DocType(_) => return Err(DECLARES),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if path.is_empty() && has_root => return Ok(()),
            Event::Eof => return Err("it ends too early"),
        }
    }
}

/// Refuses what would cost a parser more than it has bytes.
fn screen(text: &str) -> Result<(), &'static str> {
    if text.matches('<').count() > TAGS {
        return Err("it has too many elements");
    }
    if text.matches("xmlns").count() > NAMESPACES {
        return Err("it has too many namespaces");
    }
    let mut declarations = text.match_indices("<!");
    let is_plain = |(at, _): (usize, &str)| {
        let behind = &text[at..];
        behind.starts_with("<!--") || behind.starts_with("<![CDATA[")
    };
    match declarations.all(is_plain) {
        true => Ok(()),
        false => Err(DECLARES),
    }
}

/// Appends what a reference stands for. Only those that XML itself has: one of them is a character, and never text.
fn push(text: &mut String, name: &BytesRef<'_>) -> Result<(), &'static str> {
    const UNKNOWN: &str = "it has a reference to nothing";
    if let Some(character) = name.resolve_char_ref().map_err(|_| UNKNOWN)? {
        text.push(character);
        return Ok(());
    }
    let character = resolve_predefined_entity(&name.xml10_content()).ok_or(UNKNOWN)?;
    text.push_str(character);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::time::{Duration, Instant};

    fn said(text: impl AsRef<[u8]>) -> Result<String, &'static str> {
        let mut all = String::new();
        read(text.as_ref(), |path, inside| {
            write!(all, "{}={inside};", path.join("/")).unwrap();
        })?;
        Ok(all)
    }

    #[test]
    fn elements_come_with_their_way_from_the_root_and_their_text() {
        let text = "\u{feff}<?xml version=\"1.0\"?><!-- < --><s:a xmlns:s='x'> <b y='&no;'> 1 &amp;&#x41;<![CDATA[<c>]]> </b><d/>\r\n \
                    <e>x<f></f>y</e></s:a>\n";
        assert_eq!(
            said(text),
            Ok("a/b=1 &A<c>;a/d=;a/e/f=;a/e=;a=;".to_owned())
        );
        // Another encoding than it says.
        let other = said(b"<a><b>M\xfcller</b><c>1</c></a>").unwrap();
        assert_eq!(other, "a/b=M\u{fffd}ller;a/c=1;a=;");
    }

    #[test]
    fn what_is_no_xml_of_a_router_is_refused() {
        let deep = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        said(deep(DEPTH)).unwrap();
        assert_eq!(said(deep(DEPTH + 1)), Err("it is too deep"));
        let wide = |n: usize| format!("<r>{}</r>", "<a/>".repeat(n - 2));
        said(wide(TAGS)).unwrap();
        assert_eq!(said(wide(TAGS + 1)), Err("it has too many elements"));
        let declared: String = (0..=NAMESPACES)
            .map(|n| format!(" xmlns:n{n}='u'"))
            .collect();
        assert_eq!(
            said(format!("<r{declared}/>")),
            Err("it has too many namespaces")
        );
        assert_eq!(said(vec![b' '; LONGEST + 1]), Err("it is too long"));
        for doctype in [
            "<!DOCTYPE r [<!ENTITY a 'b'>]>",
            "<!doctype r>",
            "<!ENTITY a 'b'>",
            "<!>",
        ] {
            let why = said(format!("{doctype}<r>&a;</r>"));
            assert_eq!(why, Err("it declares types or entities"), "{doctype}");
        }
        for bad in [
            "",
            " ",
            "<?xml version=\"1.0\"?>",
            "<a>",
            "<a></b>",
            "</a>",
            "<a/><b/>",
            "<a></a><b></b>",
            "<a",
            "<a>&b;</a>",
            "<a>&#0;</a>",
            "<a>&",
            "<!--",
            "<a><![CDATA[</a>",
            "\u{0}",
            "\u{fffe}",
        ] {
            assert!(said(bad).is_err(), "{bad:?}: {:?}", said(bad));
        }
    }

    /// `part` as often as it fits between the two others.
    fn filled(begin: &str, part: &str, end: &str) -> String {
        let times = (LONGEST - begin.len() - end.len()) / part.len();
        format!("{begin}{}{end}", part.repeat(times))
    }

    #[test]
    fn the_worst_within_the_bounds_is_read_within_a_second() {
        let long = "n".repeat(1500);
        let declared: String = (0..NAMESPACES)
            .map(|n| format!(" xmlns:{n}='{long}'"))
            .collect();
        let cheap = "<a/>".repeat(TAGS - 2);
        for worst in [
            // The bomb that takes a gigabyte where each element has its own copy of every namespace.
            format!("<r{declared}>{cheap}</r>"),
            filled("<r>", "&amp;", "</r>"),
            filled("<r>", "&#65;", "</r>"),
            filled("<r>", "x&", "</r>"),
            filled("<r>", "]]>", "</r>"),
            filled("<r ", "a='b' ", "></r>"),
            filled("<r ", "a ", "></r>"),
            filled("<r>", "<?a ", "</r>"),
            filled("<!--", "-- ", ""),
            filled("<r>", "<![CDATA[", "</r>"),
            filled("<r>", "<![CDATA[]]>", "</r>"),
            filled("<r>", "<!---->", "</r>"),
            filled("", ":", ""),
            filled("<", "a:", "/>"),
            filled("", "<a>", ""),
            filled("", "xmlns", ""),
        ] {
            assert!(worst.len() <= LONGEST);
            let begun = Instant::now();
            let outcome = said(&worst);
            let took = begun.elapsed();
            assert!(
                took < Duration::from_secs(1),
                "{:?} took {took:?}: {:?}",
                &worst[..40],
                outcome.map(|all| all.len())
            );
        }
    }
}
