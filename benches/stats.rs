//! Medians and quartiles.

/// What a number of samples say: the median, and the quartiles around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// A quarter of the samples is below.
    pub(crate) low: f64,
    /// Half of the samples is below.
    pub(crate) median: f64,
    /// Three quarters of the samples are below.
    pub(crate) high: f64,
    /// How many there were.
    pub(crate) count: usize,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().filter(|x| x.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then(|| Summary {
            low: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            high: quantile(&sorted, 0.75),
            count: sorted.len(),
        })
    }

    /// How far apart the quartiles are, as a part of the median.
    pub(crate) fn spread(&self) -> f64 {
        match self.median == 0.0 {
            true => 0.0,
            false => (self.high - self.low) / self.median,
        }
    }

    /// Every number times `factor`.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        Summary {
            low: self.low * factor,
            median: self.median * factor,
            high: self.high * factor,
            count: self.count,
        }
    }
}

/// The value below which `part` of the samples are; between two samples, in proportion.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// Three digits that count.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    let places = match size {
        _ if size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}
