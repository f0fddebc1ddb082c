//! Pictures of the report, as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::unique;
use crate::cell::{Cell, Finished};
use crate::grid::ARMS;
use crate::statistics::{half_width, is_confused, mean};

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 3] = [RGBColor(90, 90, 90), RGBColor(213, 94, 0), RGBColor(0, 114, 178)];

/// A picture failed to be drawn: nothing that a run can cause.
type Drawn<T> = Result<T, DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// File name and contents of the pictures that there are runs for.
pub(crate) fn plots(finished: &[Finished]) -> Vec<(&'static str, String)> {
    let of = |table: &str| finished.iter().filter(|run| run.cell.table == table).collect::<Vec<_>>();
    let (headline, rates, confusion) = (of("headline"), of("rates"), of("confusion"));
    let mut all = Vec::new();
    if !headline.is_empty() {
        all.push(("headline.svg", picture(|area| bars(area, &headline))));
    }
    if !rates.is_empty() {
        let accuracy = |runs: &[&Finished]| mean(&runs.iter().map(|run| run.outcome.accuracy).collect::<Vec<_>>());
        let titles = ("Test accuracy at every learning rate", "log10 of the rate", "accuracy %");
        all.push(("rates.svg", picture(|area| lines(area, &rates, titles, |cell| cell.lr.log10(), accuracy))));
    }
    if !confusion.is_empty() {
        let share = |runs: &[&Finished]| {
            100.0 * runs.iter().filter(|run| is_confused(run.outcome.accuracy)).count() as f64 / runs.len() as f64
        };
        let titles = ("Runs within 2 points of chance", "hidden layers", "% of the runs of all settings");
        all.push(("confusion.svg", picture(|area| lines(area, &confusion, titles, |cell| cell.depth as f64, share))));
    }
    all
}

fn picture(draw: impl Fn(&Area<'_>) -> Drawn<()>) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let drawn = area.fill(&WHITE).and_then(|()| draw(&area)).and_then(|()| area.present());
        drawn.expect("a string takes any picture");
    }
    svg
}

/// One row after the other: the mean with its interval.
fn bars(area: &Area<'_>, runs: &[&Finished]) -> Drawn<()> {
    let rows = unique(runs.iter().map(|run| run.cell.row.as_str()));
    let of_row = |row: &str| {
        let of = runs.iter().filter(|run| run.cell.row == row).map(|run| run.outcome.accuracy).collect::<Vec<f64>>();
        (mean(&of), half_width(&of).unwrap_or(0.0))
    };
    let values: Vec<(f64, f64)> = rows.iter().map(|row| of_row(row)).collect();
    let ends = values.iter().flat_map(|(middle, half)| [middle - half, middle + half]).filter(|end| end.is_finite());
    let (low, high) = ends.fold((f64::INFINITY, 0.0_f64), |(low, high), end| (low.min(end), high.max(end)));
    let mut chart = ChartBuilder::on(area)
        .caption("Test accuracy, SGD, batch 512, mean and 95 % interval", ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(270)
        .build_cartesian_2d(low.min(high) - 1.0..high + 1.0, -0.5..rows.len() as f64 - 0.5)?;
    let name = |y: &f64| {
        let index = rows.len() as f64 - 1.0 - y;
        let whole = index.round();
        ((index - whole).abs() < 1e-6).then(|| rows.get(whole as usize).copied()).flatten().unwrap_or("").to_string()
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(rows.len() + 1)
        .y_label_formatter(&name)
        .x_desc("accuracy %")
        .draw()?;
    let at = |index: usize| (rows.len() - 1 - index) as f64;
    chart.draw_series(values.iter().enumerate().filter(|(_, value)| value.0.is_finite()).map(
        |(i, &(middle, half))| {
            PathElement::new([(middle - half, at(i)), (middle + half, at(i))], COLOURS[2].stroke_width(2))
        },
    ))?;
    let points = values.iter().enumerate().filter(|(_, value)| value.0.is_finite());
    chart.draw_series(points.map(|(i, &(middle, _))| Circle::new((middle, at(i)), 4, COLOURS[1].filled())))?;
    Ok(())
}

/// A line for each arm: a measure of its runs over a quantity of theirs.
fn lines(
    area: &Area<'_>,
    runs: &[&Finished],
    (title, x_name, y_name): (&str, &str, &str),
    x: impl Fn(&Cell) -> f64,
    y: impl Fn(&[&Finished]) -> f64,
) -> Drawn<()> {
    let series = |arm: &str| {
        let of_arm: Vec<&Finished> =
            runs.iter().copied().filter(|run| run.cell.row.ends_with(&format!(", {arm}"))).collect();
        let mut places: Vec<f64> = of_arm.iter().map(|run| x(&run.cell)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let there = |place: f64| of_arm.iter().copied().filter(|run| x(&run.cell) == place).collect::<Vec<_>>();
        places.into_iter().map(|place| (place, y(&there(place)))).collect::<Vec<_>>()
    };
    let all: Vec<Vec<(f64, f64)>> = ARMS.iter().map(|(arm, _)| series(arm)).collect();
    let xs = || all.iter().flatten().map(|(x, _)| *x);
    let (left, right) = (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
    let top = all.iter().flatten().map(|(_, y)| *y).filter(|y| y.is_finite()).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(left - 0.1..right + 0.1, 0.0..top * 1.05)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc(x_name).y_desc(y_name).draw()?;
    for (((arm, _), points), colour) in ARMS.iter().zip(all).zip(COLOURS) {
        let points: Vec<_> = points.into_iter().filter(|(_, y)| y.is_finite()).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(*arm)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::{Scale, confusion, study, tests::SETTING, tests::finished};

    #[test]
    fn there_is_a_picture_of_every_table_that_has_one() {
        let settings = Scale::Cpu.settings();
        let cells = [study(&settings, SETTING), confusion(&settings, SETTING)].concat();
        let runs: Vec<_> = cells.into_iter().map(|cell| finished(cell, 40.0, 1.0)).collect();
        let all = plots(&runs);
        assert_eq!(
            all.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["headline.svg", "rates.svg", "confusion.svg"]
        );
        let headline = &all[0].1;
        for row in ["plain", "ZeroSum", "Inverted of PositiveSum"] {
            assert!(headline.contains(&format!("\n{row}\n")), "{row} is not in {headline}");
        }
        assert!(all[1].1.contains("PositiveSum") && plots(&[]).is_empty());
    }

    #[test]
    fn runs_that_diverged_are_left_out_of_a_picture() {
        let cells = study(&Scale::Cpu.settings(), SETTING).into_iter().filter(|cell| cell.seed == 0);
        let mut runs: Vec<_> = cells.map(|cell| finished(cell, f64::NAN, 1.0)).collect();
        assert_eq!(plots(&runs)[0].1.matches("<circle").count(), 0);
        runs[0].outcome.accuracy = 40.0;
        assert_eq!(plots(&runs)[0].1.matches("<circle").count(), 1);
    }
}
