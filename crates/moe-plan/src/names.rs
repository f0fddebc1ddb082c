//! Names that are not known, and the known one that was meant.

/// Most edits that turn a name into one that is suggested; they are less than half of its letters, too.
const NEAR: usize = 3;

/// The message for a `name` that is none of `known`: `what` says of what.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|other| (distance(name, other), other)).min();
    match nearest.filter(|(edits, _)| *edits <= NEAR && 2 * edits < name.len()) {
        Some((_, nearest)) => format!("unknown {what} `{name}`; did you mean `{nearest}`?"),
        None => format!("unknown {what} `{name}`; there are {}", known.join(", ")),
    }
}

/// Letters to insert, remove or replace (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_otherwise_all_are_listed() {
        let known = ["nvlink4", "pcie5"];
        assert_eq!(unknown("link", "nvlink", &known), "unknown link `nvlink`; did you mean `nvlink4`?");
        assert_eq!(
            unknown("link", "carrier pigeon", &known),
            "unknown link `carrier pigeon`; there are nvlink4, pcie5"
        );
    }

    #[test]
    fn distances_are_numbers_of_edits() {
        assert_eq!([distance("", "abc"), distance("abc", "abd"), distance("abc", "bc")], [3, 1, 1]);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
