package engine

// Whoever started the engine may load more than the file has: what stands in a swanctl.conf.

// Running is closed when the engine takes commands.
func (e *Engine) Running() <-chan struct{} { return e.running }

// OnReload has f called on a control client's goroutine when it wants the configuration read again
// (reload-settings), after the file has been. It is called before Run.
func (e *Engine) OnReload(f func() error) { e.onReload = f }

// reloadAll reads the file again, if there is one, and what stands beside it.
func (e *Engine) reloadAll() error {
	if e.o.Path != "" || e.onReload == nil {
		if err := e.reload(); err != nil {
			return err
		}
	}
	if e.onReload == nil {
		return nil
	}
	return e.onReload()
}
