package store

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapToSlog is a zap logger that hands etcd's warnings and errors to slog. What zap does after a fatal or panic entry stays zap's.
func zapToSlog(l *slog.Logger) *zap.Logger {
	return zap.New(&slogCore{log: l.With("component", "etcd")})
}

type slogCore struct{ log *slog.Logger }

// expected are warnings about choices that OpenEmbedded makes on purpose. They would greet every operator at every start.
var expected = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true, // there is no port
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(attrs(fields)...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case expected[e.Message]:
		level = slog.LevelDebug
	case e.Level > zapcore.WarnLevel:
		level = slog.LevelError
	}
	c.log.Log(context.Background(), level, e.Message, attrs(fields)...)
	return nil
}

func (c *slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	list := make([]any, 0, len(fields))
	for _, f := range fields {
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for k, v := range enc.Fields {
			list = append(list, slog.Any(k, v))
		}
	}
	return list
}
