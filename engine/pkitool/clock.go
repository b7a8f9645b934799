package pkitool

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"postern/engine/cli"
)

// earliest is a time that has passed for every device that runs this program. A clock that is
// before it was never set.
var earliest = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// Bounds and defaults of validities. The end of the century is as far as anybody can mean.
const (
	defaultDays   = 825
	defaultCADays = 3650
	defaultCRL    = 30
	maxDays       = 36500
	// backdated is how long before now a certificate begins, for peers whose clocks are late.
	backdated = time.Hour
	// soon is how long before the end of a certificate one is warned.
	soon = 30 * 24 * time.Hour
)

// latest is the last time that certificates can have (RFC 5280 4.1.2.5): no certificate ends after it.
var latest = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)

// timeForms are the ways to write a time.
var timeForms = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"}

// parseTime reads a time, as UTC where it does not say.
func parseTime(option, text string) (time.Time, error) {
	for _, form := range timeForms {
		if at, err := time.Parse(form, text); err == nil {
			if at.Year() < 1970 || at.After(latest) {
				break
			}
			return at.UTC().Truncate(time.Second), nil
		}
	}
	return time.Time{}, usageError(fmt.Sprintf("--%s %q is no time; write 2026-11-22 or 2026-11-22T08:30:00Z", option, cli.Clean(text)))
}

// stamp writes a time for people.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// clock is the time that a command goes by.
type clock struct{ now *string }

func clockOption(o *cli.Options) clock {
	return clock{o.String("now", "", "take `TIME` for now, where the device has no clock: 2026-11-22T08:30")}
}

// errClock says what to do about a clock that is wrong.
var errClock = errors.New("set the clock first, or tell the time with --now 2026-11-22T08:30")

// read returns the time, or refuses a clock that was never set.
func (c clock) read(t *tool) (time.Time, error) {
	if *c.now != "" {
		return parseTime("now", *c.now)
	}
	now := t.os.Now().UTC().Truncate(time.Second)
	if now.Before(earliest) {
		return now, fmt.Errorf("this device's clock says %s, which is plainly wrong: %w", stamp(now), errClock)
	}
	return now, nil
}

// validity is from when until when a certificate shall be valid.
type validity struct {
	clock
	days     *int
	from, to *string
}

func validityOptions(o *cli.Options, days int) validity {
	return validity{
		clock: clockOption(o),
		days:  o.Int("days", days, "valid for `N` days"),
		from:  o.String("not-before", "", "valid from `TIME` on instead of now (an hour ago, as clocks differ)"),
		to:    o.String("not-after", "", "valid until `TIME` instead of --days"),
	}
}

// span returns the first and the last second. issuer is nil for who signs itself.
func (v validity) span(t *tool, issuer *x509.Certificate) (from, to time.Time, err error) {
	if *v.days < 1 || *v.days > maxDays {
		return from, to, usageError(fmt.Sprintf("--days must be from 1 to %d, not %d", maxDays, *v.days))
	}
	start := time.Time{}
	if *v.from != "" {
		// Who says when it begins is not asked what time it is.
		if start, err = parseTime("not-before", *v.from); err != nil {
			return from, to, err
		}
		from = start
	} else {
		if start, err = v.read(t); err != nil {
			return from, to, err
		}
		from = start.Add(-backdated)
	}
	to = start.AddDate(0, 0, *v.days)
	if *v.to != "" {
		if to, err = parseTime("not-after", *v.to); err != nil {
			return from, to, err
		}
	}
	if to.After(latest) {
		to = latest
	}
	if issuer == nil {
		return from, to, order(from, to)
	}
	switch {
	case start.After(issuer.NotAfter):
		return from, to, fmt.Errorf("the authority's certificate ended on %s: make a new authority, or set the clock if it is not %s", stamp(issuer.NotAfter), stamp(start))
	case start.Before(issuer.NotBefore):
		return from, to, fmt.Errorf("the authority's certificate begins on %s, and it is %s by this device's clock: %w", stamp(issuer.NotBefore), stamp(start), errClock)
	}
	// Nothing that an authority issues is valid when it is not itself.
	if from.Before(issuer.NotBefore) {
		from = issuer.NotBefore
	}
	if to.After(issuer.NotAfter) {
		to = issuer.NotAfter
		t.note("note: it ends with the authority, on %s", stamp(to))
	}
	return from, to, order(from, to)
}

func order(from, to time.Time) error {
	if !to.After(from) {
		return usageError(fmt.Sprintf("it would end on %s, before it begins on %s", stamp(to), stamp(from)))
	}
	return nil
}
