//! Amounts as people write them: sizes and rates such as `16M`, `512K`, `1.5G`, `4096`, and processors such as `0.5`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

/// Parses a number of bytes (or of anything else), with an optional binary suffix K, M, G or T, as in `16M` or `16MiB`.
///
/// # Errors
/// It is none, or too large: one line that says what to write.
pub fn size(text: &str) -> Result<u64, String> {
    let refuse = || format!("'{text}' is not a size: write a number with K, M or G, such as 16M");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.trim().to_ascii_uppercase();
    let shift = match suffix.trim_end_matches('B').trim_end_matches('I') {
        "" if !suffix.contains('I') => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(refuse()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(refuse);
    }
    let value: f64 = number.parse().map_err(|_| refuse())?;
    let bytes = value * (1u64 << shift) as f64;
    // Below 2^53 every whole number is exact.
    if value.is_finite() && (0.0..9.0e15).contains(&bytes) { Ok(bytes as u64) } else { Err(refuse()) }
}

/// Parses a time such as `500ms`, `10s`, `2.5m` or `10` (seconds) into milliseconds, at most a day.
///
/// # Errors
/// It is none, or too long: one line that says what to write.
pub fn milliseconds(text: &str) -> Result<u32, String> {
    const DAY: f64 = 86_400_000.0;
    let refuse =
        || format!("'{text}' is no time up to a day: write a number with ms, s, m or h, such as 10s");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => return Err(refuse()),
    };
    let value = number.parse::<f64>().map_err(|_| refuse())? * factor;
    // In this range the conversion is exact.
    if (1.0..=DAY).contains(&value) { Ok(value as u32) } else { Err(refuse()) }
}

/// Parses a number of processors, such as `0.5`, into thousandths of one.
///
/// # Errors
/// It is none: one line that says what to write.
pub fn permille(text: &str) -> Result<u32, String> {
    let refuse = || format!("'{text}' is no number of processors: write one from 0.001 on, such as 0.5");
    let value: f64 = text.parse().map_err(|_| refuse())?;
    let permille = (value * 1000.0).round();
    // In this range the conversion is exact.
    if (1.0..=1e9).contains(&permille) { Ok(permille as u32) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::{milliseconds, permille, size};

    #[test]
    fn times() {
        for (text, ms) in
            [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("2.5m", 150_000), ("24h", 86_400_000)]
        {
            assert_eq!(milliseconds(text), Ok(ms));
        }
        for bad in ["", "s", "0", "-1s", "25h", "1d", "1e3", "soon", "0.5ms", "1 s"] {
            assert!(milliseconds(bad).unwrap_err().contains("is no time"), "{bad}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(permille("0.5"), Ok(500));
        assert_eq!(permille("2"), Ok(2000));
        for bad in ["", "0", "-1", "half", "NaN", "inf", "0.0001"] {
            assert!(permille(bad).unwrap_err().contains("is no number of processors"), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("16M"), Ok(16 << 20));
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        for bad in ["", "M", "16X", "-1", "1.2.3", "99999999999T", "1e9", "16 apples"] {
            assert!(size(bad).unwrap_err().contains("is not a size"), "{bad}");
        }
    }
}
