//! Text from guests that can do nothing where it is shown.
//!
//! A guest chooses the bytes of its console, and perhaps of its name. Control characters could move a terminal's cursor, marks of writing
//! direction could show `exe.txt` for `txt.exe`, and characters without a picture could hide in between. Each is replaced by something that can be seen.
//! (Boucher and Anderson, "Trojan Source", 2021, show what the second kind can do.) HTML needs no care here: pages set text, never markup.

use std::fmt::Write as _;

/// What control characters are called, in their order. There are pictures of them in Unicode, which few fonts have.
const CONTROLS: [&str; 32] = [
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI",
    "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS",
    "US",
];

/// One line, `most` characters at most (`…` says that there was more).
#[must_use]
pub(crate) fn line(text: &str, most: usize) -> String {
    show(text, most, false)
}

/// Lines, `most` characters at most.
#[must_use]
pub(crate) fn lines(text: &str, most: usize) -> String {
    show(text, most, true)
}

/// Text of a console, and how many of the bytes it covers: a character whose end is still to come is left for the next time.
#[must_use]
pub(crate) fn console(bytes: &[u8]) -> (String, usize) {
    let whole = bytes.len() - unfinished(bytes);
    let (whole, _) = bytes.split_at_checked(whole).unwrap_or((bytes, &[]));
    (lines(&String::from_utf8_lossy(whole), usize::MAX), whole.len())
}

/// Bytes at the end that begin a character and do not end it.
fn unfinished(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return 0,
        };
        return if back + 1 < length { back + 1 } else { 0 };
    }
    0
}

fn show(text: &str, most: usize, several: bool) -> String {
    let mut shown = String::with_capacity(text.len().min(most.saturating_mul(4)));
    let mut characters = text.chars().peekable();
    let mut count = 0;
    while let Some(c) = characters.next() {
        if count == most {
            shown.push('…');
            break;
        }
        count += 1;
        match c {
            '\n' | '\t' if several => shown.push(c),
            // The end of a line, as some write it.
            '\r' if several && characters.peek() == Some(&'\n') => {}
            // Writing to a string cannot fail.
            _ if let Some(name) = CONTROLS.get(c as usize) => drop(write!(shown, "⟨{name}⟩")),
            '\u{7f}' => shown.push_str("⟨DEL⟩"),
            _ if is_invisible(c) => drop(write!(shown, "⟨U+{:04X}⟩", u32::from(c))),
            _ => shown.push(c),
        }
    }
    shown
}

/// Whether a character has no picture of its own, or changes how others are placed.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_named() {
        assert_eq!(lines("\x1b[2Jgone\x07\r\nnext\rover", 100), "⟨ESC⟩[2Jgone⟨BEL⟩\nnext⟨CR⟩over");
        assert_eq!(line("a\nb\tc\u{7f}", 100), "a⟨LF⟩b⟨TAB⟩c⟨DEL⟩");
    }

    #[test]
    fn marks_of_direction_are_named() {
        assert_eq!(line("a\u{202e}txt.exe\u{2066}", 100), "a⟨U+202E⟩txt.exe⟨U+2066⟩");
        assert_eq!(line("\u{9b}31m\u{200b}\u{feff}\u{e0041}", 100), "⟨U+009B⟩31m⟨U+200B⟩⟨U+FEFF⟩⟨U+E0041⟩");
    }

    #[test]
    fn ordinary_text_stays() {
        for text in ["web-17", "größer", "日本語", "مرحبا", "<b>&amp;</b>"] {
            assert_eq!(line(text, 100), text);
        }
    }

    #[test]
    fn length_is_bounded() {
        assert_eq!(line("abcdef", 3), "abc…");
        assert_eq!(line("abc", 3), "abc");
        assert_eq!(lines("\u{202e}".repeat(1000).as_str(), 2), "⟨U+202E⟩⟨U+202E⟩…");
    }

    #[test]
    fn a_cut_character_waits_for_its_end() {
        let bytes = "für 日本 🦀".as_bytes();
        for cut in 0..=bytes.len() {
            let (first, used) = console(&bytes[..cut]);
            assert!(cut - used < 4, "{cut}");
            let (second, rest) = console(&bytes[used..]);
            assert_eq!(first + &second, "für 日本 🦀", "{cut}");
            assert_eq!(used + rest, bytes.len());
        }
    }

    #[test]
    fn what_is_no_text_never_stalls() {
        for bytes in [&[0xff_u8, 0xfe][..], &[0x80; 9], &[0xf5, 0x80, 0x80], &[b'a', 0xc0]] {
            let (text, used) = console(bytes);
            assert_eq!(used, bytes.len(), "{bytes:x?}");
            assert!(text.contains('\u{fffd}'));
        }
    }
}
