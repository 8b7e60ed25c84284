//! Shares and sizes, as people write and read them.

/// `10%`, `0.5%` or `12.34`, in hundredths of a percent.
pub(crate) fn basis_points(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no share: give 0.01% to 100%");
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.is_empty() || part.len() > 2 || !digits(whole) || !digits(part) {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let part: u32 = format!("{part:0<2}").parse().map_err(|_| wrong())?;
    match whole * 100 + part {
        share @ 1..=10_000 => Ok(share),
        _ => Err(wrong()),
    }
}

pub(crate) fn percent(basis_points: u32) -> String {
    let text = format!("{}.{:02}", basis_points / 100, basis_points % 100);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

pub(crate) fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_written_as_percent() {
        for (text, share, shown) in [
            ("10%", 1_000, "10%"),
            ("0.5%", 50, "0.5%"),
            ("12.34", 1_234, "12.34%"),
            ("100%", 10_000, "100%"),
            ("0.01%", 1, "0.01%"),
        ] {
            assert_eq!(basis_points(text), Ok(share));
            assert_eq!(percent(share), shown);
        }
        for text in [
            "", "%", "0%", "101%", "-1%", "1.234%", "1.%", ".5%", "ten", "1e2%",
        ] {
            assert!(basis_points(text).is_err(), "{text}");
        }
    }
}
