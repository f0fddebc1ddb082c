//! Which layers of a model have experts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which layers have experts; the others have a dense feed-forward block.
///
/// In text `"none"`, `"all"`, `"all-but-first"`, `"every-N"` or `"last-N"` with a number for `N`, or
/// `"only-0,2,5"` with the indices of layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MoeLayers {
    /// A dense model.
    None,
    /// Every layer.
    All,
    /// Every layer but the first.
    #[default]
    AllButFirst,
    /// Every `n`-th layer, beginning with the `n`-th: layers 1, 3, 5 .. (counted from 0) for 2. 0 selects nothing.
    Every(usize),
    /// The last `n` layers, as in V-MoE; all of them if there are not more.
    Last(usize),
    /// The layers of these indices, counted from 0, in ascending order.
    Only(Vec<usize>),
}

/// A text that names no [`MoeLayers`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "moe_layers = \"{text}\" is not a placement of experts; write \"none\", \"all\", \"all-but-first\", \
     \"every-N\" or \"last-N\" with N at least 1, for instance \"every-2\", or the ascending indices of layers, for instance \
     \"only-0,2,5\""
)]
pub struct ParseMoeLayersError {
    text: String,
}

impl MoeLayers {
    /// Whether layer `layer` of `num_layers`, counted from 0, has experts.
    pub fn includes(&self, layer: usize, num_layers: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::AllButFirst => layer > 0,
            Self::Every(n) => (layer + 1).is_multiple_of(*n),
            Self::Last(n) => layer + n >= num_layers,
            Self::Only(layers) => layers.contains(&layer),
        }
    }

    /// The shortest form of the placement that selects the layers of which `is_moe` is true, out of `num_layers`.
    pub fn of(num_layers: usize, is_moe: impl Fn(usize) -> bool) -> Self {
        let chosen: Vec<usize> = (0..num_layers).filter(|&layer| is_moe(layer)).collect();
        let named = [Self::None, Self::All, Self::AllButFirst]
            .into_iter()
            .chain((2..=num_layers).map(Self::Every))
            .chain((1..num_layers).map(Self::Last));
        let same = |form: &Self| (0..num_layers).all(|layer| form.includes(layer, num_layers) == is_moe(layer));
        named.into_iter().find(same).unwrap_or(Self::Only(chosen))
    }

    /// The largest layer index that the placement names.
    pub(crate) fn last_named(&self) -> Option<usize> {
        match self {
            Self::Only(layers) => layers.iter().max().copied(),
            _ => None,
        }
    }
}

impl FromStr for MoeLayers {
    type Err = ParseMoeLayersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let count = |text: &str, prefix| text.strip_prefix(prefix)?.parse().ok().filter(|&n: &usize| n > 0);
        let every = |text: &str| count(text, "every-").map(Self::Every);
        let last = |text: &str| count(text, "last-").map(Self::Last);
        let only = |text: &str| {
            let layers = text.strip_prefix("only-")?.split(',');
            let layers: Vec<usize> = layers.map(|layer| layer.parse().ok()).collect::<Option<_>>()?;
            layers.is_sorted_by(|a, b| a < b).then_some(Self::Only(layers))
        };
        match text {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            "all-but-first" => Ok(Self::AllButFirst),
            other => {
                let found = every(other).or_else(|| last(other)).or_else(|| only(other));
                found.ok_or_else(|| ParseMoeLayersError { text: other.to_string() })
            }
        }
    }
}

impl fmt::Display for MoeLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::All => f.write_str("all"),
            Self::AllButFirst => f.write_str("all-but-first"),
            Self::Every(n) => write!(f, "every-{n}"),
            Self::Last(n) => write!(f, "last-{n}"),
            Self::Only(layers) => {
                let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
                write!(f, "only-{}", layers.join(","))
            }
        }
    }
}

impl TryFrom<String> for MoeLayers {
    type Error = ParseMoeLayersError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MoeLayers> for String {
    fn from(layers: MoeLayers) -> Self {
        layers.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(layers: MoeLayers) -> Vec<usize> {
        (0..6).filter(|&layer| layers.includes(layer, 6)).collect()
    }

    #[test]
    fn each_placement_selects_its_layers() {
        assert!(selected(MoeLayers::None).is_empty());
        assert_eq!(selected(MoeLayers::All), [0, 1, 2, 3, 4, 5]);
        assert_eq!(selected(MoeLayers::AllButFirst), [1, 2, 3, 4, 5]);
        assert_eq!(selected(MoeLayers::Every(1)), selected(MoeLayers::All));
        assert_eq!(selected(MoeLayers::Every(2)), [1, 3, 5]);
        assert_eq!(selected(MoeLayers::Every(3)), [2, 5]);
        assert!(selected(MoeLayers::Every(0)).is_empty());
        assert_eq!(selected(MoeLayers::Last(2)), [4, 5]);
        assert_eq!(selected(MoeLayers::Last(9)), selected(MoeLayers::All));
        assert!(selected(MoeLayers::Last(0)).is_empty());
        assert_eq!(selected(MoeLayers::Only(vec![0, 4])), [0, 4]);
    }

    #[test]
    fn the_shortest_form_selects_the_same_layers() {
        let form = |layers: &[usize]| MoeLayers::of(6, |layer| layers.contains(&layer));
        assert_eq!(form(&[]), MoeLayers::None);
        assert_eq!(form(&[0, 1, 2, 3, 4, 5]), MoeLayers::All);
        assert_eq!(form(&[1, 2, 3, 4, 5]), MoeLayers::AllButFirst);
        assert_eq!(form(&[2, 5]), MoeLayers::Every(3));
        assert_eq!(form(&[0, 2, 5]), MoeLayers::Only(vec![0, 2, 5]));
    }

    #[test]
    fn text_round_trips() {
        use MoeLayers::{All, AllButFirst, Every, Last, None, Only};
        for layers in [None, All, AllButFirst, Every(12), Last(3), Only(vec![0, 7])] {
            assert_eq!(layers.to_string().parse(), Ok(layers));
        }
    }

    #[test]
    fn other_text_is_refused_with_the_choices() {
        for text in [
            "",
            "some",
            "every",
            "every-",
            "every-0",
            "every--1",
            "every-two",
            "last-0",
            "last-x",
            "All",
            "only-",
            "only-2,1",
            "only-1,1",
            "only-a",
        ] {
            let message = text.parse::<MoeLayers>().expect_err(text).to_string();
            assert!(message.contains(text) && message.contains("every-2"), "{message}");
        }
    }
}
