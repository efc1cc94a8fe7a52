"""Stands in for a module that transformers' source distribution leaves out."""

import torch


class ExportTesterMixin:
    """The base of `ModelTesterMixin`: each model becomes one graph that computes what the model computes."""

    def test_export_matches_eager(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(config).eval()
                kwargs = self._prepare_for_class(inputs, model_class) | {"use_cache": False}
                with torch.no_grad():
                    expected = model(**kwargs)[0]
                    exported = torch.export.export(model, (), kwargs=kwargs, strict=False)
                    actual = exported.module()(**kwargs)[0]
                torch.testing.assert_close(actual, expected)
